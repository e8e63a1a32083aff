"""One run of the command line: what it is set to, what it says on the way, which files it leaves behind."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from inspect import signature
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import minipnp
from minipnp.errors import InputError
from minipnp.guidance import Inversion
from minipnp.images import write_png, write_text_atomic
from minipnp.pipeline import draw, guidance_from_prompt, keeps_features
from minipnp.pnp import PnP
from minipnp.slots import Layer, Tap, decoder


def default(function, name: str):
    return signature(function).parameters[name].default


@dataclass(frozen=True)
class Settings:
    """What a translation does, whatever its guidance, its texts and its model.

    vae_sampled: x_0 is drawn from the VAE's posterior, and is not its mean. both: see `guidance_from_text`.
    source_is_negative: the source prompt takes the negative prompt's place where that is not given.
    random_start: a seed for an x_T that is not the guidance's. size: short side in pixels; None is the model's own.
    """

    pnp: PnP = PnP()
    inversion: Inversion = Inversion()
    square: bool = False
    size: int | None = None
    seed: int = default(draw, "seed")
    source_scale: float = default(guidance_from_prompt, "scale")
    random_start: int | None = None
    vae_sampled: bool = False
    both: bool = False
    source_is_negative: bool = False

    @classmethod
    def like(cls, codebase: str, generated: bool) -> "Settings":
        """The defaults: "minipnp"'s own, or those of the authors' codebases, "pnp-diffusers" and "plug-and-play"."""
        if codebase == "minipnp":
            return cls()
        if codebase == "pnp-diffusers":
            return cls(inversion=Inversion(steps=999, at="next", iterations=0))
        scale, alpha = (7.5, 0.75) if generated else (10.0, 1.0)
        return cls(
            PnP(inclusive=True, scale=scale, alpha=alpha, alpha_schedule="linear"),
            Inversion(steps=999, at="current", iterations=0, resample=999),
            square=True, vae_sampled=True, both=True, source_is_negative=True,
        )  # fmt: skip

    def with_options(self, given: dict) -> "Settings":
        """The same with other values, by their names in `options`. Raises InputError for one that cannot be."""

        given = {name: decoder_layers(value) if name.endswith("_layers") else value for name, value in given.items()}

        def changed(part, names: dict[str, str]):
            return replace(part, **{field: given[name] for name, field in names.items() if name in given})

        return changed(replace(self, **{part: changed(getattr(self, part), _PARTS[part]) for part in _PARTS}), _OWN)

    def options(self) -> dict[str, object]:
        """All of it, flat, as JSON has it."""
        parts = {name: getattr(getattr(self, part), field) for part in _PARTS for name, field in _PARTS[part].items()}
        parts["inversion_steps"] = self.inversion.steps_for(self.pnp.steps)
        own = {name: getattr(self, name) for name in _OWN}
        return {name: _span(value) if isinstance(value, tuple) else value for name, value in (parts | own).items()}

    @property
    def keeps(self) -> bool:
        return keeps_features(self.inversion, self.pnp.steps)

    def evaluations(
        self, generated: bool, prompts: int, negative: bool, reconstruct: bool, kept: PnP | str | None = "its own"
    ) -> dict[str, int]:
        """How often the network is evaluated, by phase; a pass over n texts counts as n, checks are not counted.

        kept: the edit whose features come with the guidance, or None; by default this one's, where they can.
        """
        if kept == "its own":
            kept = self.pnp if self.keeps and not generated else None
        s, there = self.pnp, kept.taps() if kept else {}
        if generated:
            due = {"guidance": s.steps * (1 if self.source_scale in (0, 1) else 2)}
        else:
            up, down = self.inversion.schedule(s.steps)
            last = bool(there) and not down  # the one level at which only features are taken
            first = {"next": len(up), "current": len(up) + last, "last": 1}[self.inversion.at]
            due = {"inversion": first + len(up) * self.inversion.iterations}
            due |= {"resampling": len(down)} if down else {}
        due |= {"reconstruction": s.steps} if reconstruct else {}
        passes = sum(not _covers(there.get(t), tap) for t, tap in s.taps().items())
        alphas = s.alphas() if negative else [1.0] * s.steps
        weights = [(s.scale, (1 - s.scale) * alpha, (1 - s.scale) * (1 - alpha)) for alpha in alphas]
        return due | {"translation": passes + prompts * sum(w != 0 for branches in weights for w in branches)}


def _covers(kept: Tap | None, wanted: Tap) -> bool:
    return kept is not None and {*kept.f} >= {*wanted.f} and {*kept.q} >= {*wanted.q}


INVERSION = {"inversion_steps": "steps", "inversion_at": "at", "fixed_point": "iterations", "resample": "resample"}
_PARTS = {"pnp": {name: name for name in PnP.__dataclass_fields__}, "inversion": INVERSION}
_OWN = {name: name for name in Settings.__dataclass_fields__ if name not in _PARTS}


def inversion_of(given: dict) -> Inversion:
    """As options of the command line say."""
    return Inversion(**{field: given[name] for name, field in INVERSION.items() if name in given})


def decoder_layers(rows: Iterable[int]) -> tuple[Layer, ...]:
    try:
        return decoder(*rows)
    except ValueError as error:
        raise InputError(str(error)) from None


def _span(layers: tuple[Layer, ...]) -> str:
    rows = sorted(layer.row for layer in layers)
    if len(rows) > 1 and rows == list(range(rows[0], rows[-1] + 1)):
        return f"{rows[0]}-{rows[-1]}"
    return ",".join(map(str, rows)) or "none"


class Log:
    """What is said, all on stderr: stdout has the paths of the results. What is noted, and how long things took."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.notes, self.seconds, self.due, self.pictures = quiet, [], {}, {}, 1
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    def write(self, text: str) -> None:
        tqdm.write(" ".join(text.splitlines()), file=sys.stderr)  # print() would write into the bar

    def say(self, text: str) -> None:
        if not self.quiet:
            self.write(text)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.write(f"note: {text}")

    @contextlib.contextmanager
    def warnings_as_notes(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: self.note(" ".join(str(message).splitlines()))
            yield

    @contextlib.contextmanager
    def clock(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - began, 3)

    def expect(self, due: dict[str, int], pictures: int = 1) -> None:
        """Says how many evaluations come, by the names of `progress`; how long they take follows once it is known."""
        self.due, self.pictures = due, pictures
        each = " for each picture" if pictures > 1 else ""
        phases = ", ".join(f"{n:,} {what}" for what, n in due.items())
        self.say(f"{sum(due.values()):,} evaluations of the network{each} ({phases})")

    def progress(self, things: Iterable, total: int, what: str) -> Iterator:
        """The things, behind a bar. From the time of the first few follows that of the whole run."""
        bar = tqdm(things, what, total, file=sys.stderr, disable=self.quiet or not sys.stderr.isatty())
        for done, thing in enumerate(bar, 1):
            if done == 2:  # the first one warms up
                began = time.perf_counter()
            if done == 5 and what in self.due:
                evaluation = (time.perf_counter() - began) / 3 * total / self.due[what]
                minutes = evaluation * sum(self.due.values()) * self.pictures / 60
                if minutes > 1:
                    self.say(f"about {minutes:.0f} min in all")
                self.due = {}
            yield thing


def picture_of(path: Path) -> dict[str, str]:
    """What records say of a picture's file."""
    return {"picture": path.name, "picture_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def record(settings: dict, log: Log, argv: list[str], **more) -> dict:
    """What run.json holds: enough to repeat the run. `settings` decide the pictures, the rest is how it went."""
    packages = ("torch", "numpy", "pillow", "einops", "safetensors", "open_clip_torch", "huggingface_hub")
    return {
        "settings": settings,
        **more,
        "notes": log.notes,
        "argv": ["python", "-m", "minipnp", *argv],
        "cwd": os.getcwd(),
        "versions": {
            "minipnp": minipnp.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        "started": log.started,
        "seconds": log.seconds,
    }


def save(out: Path, pictures: dict[str, tuple[Image.Image, dict] | bytes], run: dict) -> list[Path]:
    """Writes the pictures (by file name, each with its settings; or the bytes of another file) and run.json. → Paths.

    out: a folder; or x.png, for the first picture, which the others stand beside, as x.run.json. Nothing is overwritten
    by something else: what is there already stays, and where another result has the place, all go to out-2, out-3, …
    """
    first = next(iter(pictures))

    def place(name: str, number: int) -> Path:
        suffix = "" if number == 1 else f"-{number}"
        if not is_png(out):
            return Path(f"{out}{suffix}") / name
        base = f"{out.with_suffix('')}{suffix}"
        return Path(base + out.suffix if name == first else f"{base}.{name}")

    try:
        beside = out if out.is_dir() else out.parent
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".minipnp-", dir=beside) as temporary:
            made = {name: Path(temporary) / name for name in (*pictures, "run.json")}
            for name, content in pictures.items():
                if isinstance(content, bytes):
                    made[name].write_bytes(content)
                    continue
                image, settings = content
                write_png(image, made[name], {"minipnp": json.dumps(settings, ensure_ascii=False)})
            write_text_atomic(json.dumps(run, ensure_ascii=False, indent=2) + "\n", made["run.json"])
            number = next(n for n in count(1) if all(_free(place(name, n), file) for name, file in made.items()))
            for name, file in made.items():
                made[name] = place(name, number)
                if not made[name].exists():
                    made[name].parent.mkdir(exist_ok=True)
                    os.replace(file, made[name])
            return list(made.values())
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror or error}") from None


def is_png(out: Path) -> bool:
    return out.suffix.lower() == ".png" and not out.is_dir()


def _free(place: Path, file: Path) -> bool:
    """Whether nothing is there, or the same: of pictures the same bytes, of run.json the same settings."""
    if not os.path.lexists(place):
        return True
    try:
        ours, theirs = file.read_bytes(), place.read_bytes()
        return ours == theirs or json.loads(ours)["settings"] == json.loads(theirs)["settings"]
    except (OSError, ValueError, TypeError, KeyError):  # not a file; not JSON, or not of a run
        return False


def check_out(out: Path, many: bool) -> None:
    """Raises InputError, before any work, where nothing could be written."""
    if is_png(out) and many:
        raise InputError(f"--out {str(out)!r}: there will be several pictures; give a folder")
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff") and not out.is_dir():
        raise InputError(f"--out {str(out)!r}: pictures are written as PNG; give a name in .png, or a folder")
    check_writable(out, out.parent if is_png(out) else out)


def check_writable(out: Path, folder: Path) -> None:
    """Raises InputError where nothing could be written into the folder, which need not be there, that `out` means."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(f"--out {str(out)!r}: {str(there)!r} is not a folder that can be written")
