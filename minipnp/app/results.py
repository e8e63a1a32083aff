"""What a run leaves behind: where its files go, what they hold, and how they are written."""

import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from itertools import count
from pathlib import Path

import torch
from PIL.Image import Image

import minipnp
from minipnp.app.log import Log
from minipnp.errors import InputError, NoRoom, cannot_write
from minipnp.files.atomic import atomic, write_text_atomic
from minipnp.files.images import read_image, write_png


def where(given: dict, name: str, many: bool) -> Path:
    out = Path(given.get("out") or Path("out") / name)
    out = Path(os.path.abspath(out)) if out.name in ("", "..") else out  # numbers are put behind the name
    check_out(out, many)
    return out


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


def save_results(out: Path, pictures: dict[str, tuple[Image, dict] | bytes], run: dict) -> list[Path]:
    """Writes the pictures (by file name, each with its settings; or the bytes of another file) and run.json. → Paths.

    out: a folder; or x.png, for the first picture, which the others stand beside, as x.run.json. Nothing is overwritten
    by something else: what is there already stays, and where another result has the place, all go to out-2, out-3, …
    Where the disk becomes full, the pictures that fit, the first ones, are kept. NoRoom: it is full.
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
            full = False
            try:
                write_results(made, pictures, run)
            except NoRoom:
                full = True
            number = next(n for n in count(1) if all(_free(place(name, n), file) for name, file in made.items()))
            lost = [name for name, file in made.items() if not file.exists()]
            for name in made.keys() - lost:
                file, made[name] = made[name], place(name, number)
                if not made[name].exists():
                    made[name].parent.mkdir(exist_ok=True)
                    os.replace(file, made[name])
    except OSError as error:
        raise cannot_write(out, error) from None
    if full:
        kept = ", ".join(str(path) for name, path in made.items() if name not in lost) or "nothing"
        raise NoRoom(f"{out}: no room on its disk for {', '.join(lost)}; {kept} is kept: make room and run this again")
    return list(made.values())


def write_results(places: dict[str, Path], pictures: dict[str, tuple[Image, dict] | bytes], run: dict) -> None:
    """Writes the pictures in their order, run.json last, each to its place whole or not at all."""
    for name, content in pictures.items():
        if isinstance(content, bytes):
            with atomic(places[name]) as temporary:
                temporary.write_bytes(content)
            continue
        image, settings = content
        write_png(image, places[name], {"minipnp": json.dumps(settings, ensure_ascii=False)})
    run = run | {"pictures": {n: pixels_of(content[0]) for n, content in pictures.items() if n.endswith(".png")}}
    write_text_atomic(json.dumps(run, ensure_ascii=False, indent=2) + "\n", places["run.json"])


def pixels_of(image: Image) -> str:
    """SHA-256 of a picture's size and pixels, whatever its file says besides."""
    picture = image.convert("RGB")
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def done_already(out: Path, settings: dict, names: list[str]) -> list[Image] | None:
    """The pictures of these names that a run with these settings has left in `out` or beside it; None: none has."""
    for number in count(1):
        folder = out if number == 1 else out.with_name(f"{out.name}-{number}")
        if not os.path.lexists(folder):
            return None
        try:
            run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if run["settings"] != json.loads(json.dumps(settings)):
                continue
            found = [read_image(folder / name) for name in names]
            if [pixels_of(image) for image in found] == [run["pictures"][name] for name in names]:
                return found
        except (OSError, ValueError, TypeError, LookupError):  # not a run's, not whole, or another's
            continue


def is_png(out: Path) -> bool:
    return out.suffix.lower() == ".png" and not out.is_dir()


def _free(place: Path, file: Path) -> bool:
    """Whether nothing is there, or the same: of pictures the same bytes, of run.json the same settings."""
    if not os.path.lexists(place):
        return True
    try:
        ours = file.read_bytes()
        theirs = place.read_bytes()
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
