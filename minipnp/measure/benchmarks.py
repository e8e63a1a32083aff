"""Benchmarks of editing, as their authors ship them: lists of a picture, what it shows, and what to make of it.

- TI2I (Plug-and-Play): a folder with pictures and one YAML file or more, each a list of
  `{init_img, source_prompt, target_prompts}`, or for guidance that is generated of
  `{source_prompt, seed, scale, target_prompts}`. Wild-TI2I, ImageNet-R-TI2I and its generated twin. `ddim_steps` is not
  read: guidance is generated in the steps of the edit.
- PIE-Bench: `mapping_file.json`, `annotation_images/`; a mask of what is edited for each picture; `[…]` in a prompt is
  around what changes.
- The bundled model's: `benchmark.json` and the pictures beside it.

What cannot be used, a row without prompts or a picture that is not there, is left out and said in `bad`.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from minipnp.errors import InputError
from minipnp.files import hub

PIE_KINDS = (
    "random",
    "change object",
    "add object",
    "delete object",
    "change content",
    "change pose",
    "change colour",
    "change material",
    "change background",
    "change style",
)


@dataclass(frozen=True)
class Pair:
    """A guidance picture and one prompt for it.

    name: of the pair; guidance: of its picture, which pairs may share. image: the picture's file; None: it is generated
    from `source`, `seed` and `scale`. word: the object in source and prompt, "cat=dog". mask: of PIE-Bench, what is
    edited, as start, length, start, … in a picture of 512 × 512. asked: style, concept and colour of an icon's prompt.
    """

    name: str
    guidance: str
    prompt: str
    image: Path | None = None
    source: str = ""
    seed: int | None = None
    scale: float | None = None
    word: str | None = None
    kind: str = ""
    held_out: bool = False
    mask: tuple[int, ...] | None = None
    asked: tuple[str, str, str] | None = None

    def mask_at(self, width: int, height: int) -> np.ndarray:
        """bool [height, width], what is edited: the runs, and a frame of one pixel, as PIE-Bench's authors have it."""
        flat = np.zeros(512 * 512, dtype=bool)
        for start, length in zip(self.mask[::2], self.mask[1::2], strict=True):
            flat[start : start + length] = True
        mask = flat.reshape(512, 512)
        mask[[0, -1]] = mask[:, [0, -1]] = True
        return mask[np.arange(height) * 512 // height][:, np.arange(width) * 512 // width]


@dataclass
class Benchmark:
    """layout: "bundled", "ti2i" or "pie". bad: what was left out, a line each."""

    name: str
    layout: str
    pairs: list[Pair] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    @cached_property
    def groups(self) -> dict[tuple, list[Pair]]:
        """The pairs by their guidance: its name, and what it is made from, as pictures of two folders share names."""
        groups = {}
        for pair in self.pairs:
            groups.setdefault((pair.guidance, pair.image, pair.source, pair.seed, pair.scale), []).append(pair)
        return groups

    def some(self, n: int | None) -> "Benchmark":
        return Benchmark(self.name, self.layout, drawn_evenly(self.pairs, n), self.bad)


def drawn_evenly(rows: list, n: int | None) -> list:
    """n rows in their order, drawn so that n of them are among any larger number; None: all."""
    return rows if n is None else [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:n])]


def read_benchmark(what: str) -> Benchmark:
    """what: "bundled", or a folder or file in one of the layouts above. InputError: there is nothing of the kind."""
    path = hub.WEIGHTS / "bundled" / "benchmark" if what == "bundled" else Path(what).absolute()
    if not path.exists():
        raise InputError(f"no benchmark {what!r}: give bundled, or a folder in the layout of TI2I or of PIE-Bench")
    folder = path if path.is_dir() else path.parent
    found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
    lists = [file for file in found if not file.name.startswith(".")]
    if path.name == "benchmark.json" or (path / "benchmark.json").is_file():
        benchmark = _icons(folder)
    elif path.name == "mapping_file.json" or (path / "mapping_file.json").is_file():
        benchmark = _pie(folder)
    elif lists and all(file.suffix in (".yaml", ".yml") for file in lists):
        benchmark = _ti2i(folder, lists)
    else:
        raise InputError(
            f"{path}: no benchmark; it has neither a YAML list (TI2I), mapping_file.json nor benchmark.json"
        )
    if what == "bundled":
        benchmark.name = "bundled"
    if not benchmark.pairs:
        raise InputError(f"{path}: nothing in it can be used: {'; '.join(benchmark.bad[:3]) or 'the list is empty'}")
    return benchmark


def _load(file: Path) -> object:
    try:
        text = file.read_text(encoding="utf-8-sig")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read as {file.suffix[1:].upper()} ({reason})") from None


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no {what}")
    return " ".join(value.split())


def _icons(folder: Path) -> Benchmark:
    benchmark = Benchmark(folder.parent.name, "bundled")
    content = _load(folder / "benchmark.json")
    sources = {}
    for i, row in enumerate(content["pairs"] if isinstance(content, dict) and "pairs" in content else []):
        try:
            image = _picture(folder, row["image"])
            source = _text(row["source"], "source")
            asked = row["asked"]
            if not isinstance(asked, list) or len(asked) != 3 or not all(isinstance(word, str) for word in asked):
                raise ValueError(f"asked is {asked!r}, not the three words of style, concept and colour")
            if sources.setdefault(image, source) != source:  # what its pairs share depends on it
                raise ValueError(f"another source than {sources[image]!r}, which {image.name} had before")
            benchmark.pairs.append(
                Pair(
                    f"{i:03}",
                    image.stem,
                    _text(row["prompt"], "prompt"),
                    image,
                    source,
                    word=row["word"],
                    kind=row["kind"],
                    held_out=row["held_out"],
                    asked=tuple(asked),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            benchmark.bad.append(f"benchmark.json, pair {i}: {_reason(error)}")
    return benchmark


def _pie(folder: Path) -> Benchmark:
    benchmark = Benchmark(folder.name, "pie")
    content = _load(folder / "mapping_file.json")
    for key, row in (content if isinstance(content, dict) else {}).items():
        try:
            source, prompt = (
                _text(row[name].replace("[", "").replace("]", ""), name)
                for name in ("original_prompt", "editing_prompt")
            )
            words = row.get("blended_word", "").split()
            mask = tuple(row["mask"])
            kind = int(row["editing_type_id"])
            if len(mask) % 2 or not all(isinstance(n, int) and n >= 0 for n in mask):
                raise ValueError("a mask that is not pairs of start and length")
            benchmark.pairs.append(
                Pair(
                    key,
                    key,
                    prompt,
                    _picture(folder / "annotation_images", row["image_path"]),
                    source,
                    word="=".join(words) if len(words) == 2 else None,
                    kind=PIE_KINDS[kind],
                    mask=mask,
                )
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            benchmark.bad.append(f"mapping_file.json, {key}: {_reason(error)}")
    return benchmark


def _ti2i(folder: Path, lists: list[Path]) -> Benchmark:
    benchmark = Benchmark(folder.name, "ti2i")
    for file in lists:
        try:
            rows = _load(file)
        except InputError as error:
            benchmark.bad.append(str(error))
            continue
        if not isinstance(rows, list):
            benchmark.bad.append(f"{file.name}: not a list")
            continue
        for i, row in enumerate(rows):
            name = f"{file.stem}-{i:02}"
            try:
                found = _ti2i_row(folder, row)
                # A picture is known by its place, which its noise follows from, whatever rows and lists are beside it.
                guidance = str(Path(row["init_img"]).with_suffix("")) if "image" in found else name
                prompts = row["target_prompts"]
                prompts = [prompts] if isinstance(prompts, str) else prompts
                if not prompts:
                    raise ValueError("no target_prompts")
                benchmark.pairs += [
                    Pair(f"{name}-{k}", guidance, _text(prompt, "target prompt"), kind=file.stem, **found)
                    for k, prompt in enumerate(prompts)
                ]
            except (KeyError, TypeError, ValueError) as error:
                benchmark.bad.append(f"{file.name}, row {i}: {_reason(error)}")
    return benchmark


def _ti2i_row(folder: Path, row: dict) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"{row!r} is not names and values")
    source = " ".join(str(row.get("source_prompt") or "").split())
    if row.get("init_img"):
        return {"image": _picture(folder, row["init_img"]), "source": source}
    if not source or "seed" not in row:
        raise ValueError("neither init_img, nor source_prompt and seed to generate it from")
    return {"source": source, "seed": int(row["seed"]), "scale": float(row["scale"]) if "scale" in row else None}


def _picture(folder: Path, name: str) -> Path:
    """The file that a list means: at its path under the folder, or under what is left of the path without its first
    folders (lists name folders of their authors' machines), in `data` too, in any case of the letters."""
    parts = [part for part in Path(_text(name, "picture")).parts if part not in ("/", ".", "..")]
    for base in (folder, folder / "data"):
        for begin in range(len(parts)):
            place = base
            for part in parts[begin:]:
                exact = place / part
                entries = place.iterdir() if not exact.exists() and place.is_dir() else []
                place = next((entry for entry in entries if entry.name.lower() == part.lower()), exact)
            if place.is_file():
                return place
    raise ValueError(f"no picture {name!r}")


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
