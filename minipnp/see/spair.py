"""PCK, the share of correct key points, over pairs of annotated pictures in the layout of SPair-71k (Min et al., 2019).

    PairAnnotation/<split>/*.json    one pair each: src_imname, trg_imname, category, src_kps, trg_kps, trg_bndbox
    JPEGImages/<category>/*.jpg

A key point of the source is correct at α if what is found for it in the target is at most α · max(height, width of the
target object's bounding box) away from the annotated place, in pixels of the file.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from minipnp.errors import InputError, explain
from minipnp.guidance import Progress, silent
from minipnp.see import show
from minipnp.see.match import nearest
from minipnp.see.sheet import Cell

ALPHA = 0.1
RIGHT = (0, 158, 80)
WRONG = (214, 40, 40)


@dataclass(frozen=True)
class AnnotatedPair:
    """source, target: the pictures' files. points: key points of the source and of the target, [n, 2] each, (x, y) in
    pixels; a pixel's centre is a whole number. box: the longer side of the target object's bounding box.
    """

    name: str
    category: str
    source: Path
    target: Path
    points: tuple[Tensor, Tensor]
    box: float


@dataclass(frozen=True)
class Score:
    """What became of a pair: which of its key points are correct."""

    category: str
    correct: Sequence[bool]


@dataclass(frozen=True)
class Looked:
    """A picture as the network was given it, the file's size (width, height), and the features [C, H, W]."""

    image: Image
    size: tuple[int, int]
    f: Tensor


def pair_files(folder: Path, split: str = "test", limit: int | None = None) -> list[Path]:
    """The annotations of a split; limit: at most so many, evenly from all. InputError: the layout is not this one."""
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give 1 or more")
    for needed in ("PairAnnotation", "JPEGImages"):
        if not (folder / needed).is_dir():
            raise InputError(f"{str(folder)!r} has no folder {needed}: give the folder that SPair-71k is unpacked to")
    if not (files := sorted((folder / "PairAnnotation" / split).glob("*.json"))):
        there = sorted(path.name for path in (folder / "PairAnnotation").iterdir() if path.is_dir())
        raise InputError(f"no pairs in PairAnnotation/{split}; its folders: {', '.join(there) or 'none'}")
    return files if limit is None else files[:: -(-len(files) // limit)]


def read_pair(path: Path, folder: Path) -> AnnotatedPair:
    """InputError: one line on what is wrong with it."""
    try:
        d = json.loads(path.read_text(encoding="utf-8"))
        a, b = (torch.tensor(d[name], dtype=torch.float64).reshape(-1, 2) for name in ("src_kps", "trg_kps"))
        left, top, right, bottom = map(float, d["trg_bndbox"])
        pictures = folder / "JPEGImages" / d["category"]
        pair = AnnotatedPair(
            path.stem,
            d["category"],
            pictures / d["src_imname"],
            pictures / d["trg_imname"],
            (a, b),
            max(right - left, bottom - top),
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{path.name} is not an annotated pair: {type(error).__name__} {error}") from None
    if len(a) != len(b) or not len(a) or not pair.box > 0:
        raise InputError(f"{path.name}: {len(a)} and {len(b)} key points, a box of {pair.box:g} pixels")
    return pair


def places(points: Tensor, width: int, height: int) -> Tensor:
    """(x, y) in pixels, whole at their centres → in shares of the picture, as `match` has them."""
    return ((points + 0.5) / torch.tensor([width, height])).float()


def pixels(places: Tensor, width: int, height: int) -> Tensor:
    """The inverse of `places`, for centres of whole pixels: rounded, so that float32 decides no comparison."""
    return (places.double() * torch.tensor([width, height]) - 0.5).round()


def correct(found: Tensor, pair: AnnotatedPair, alpha: float) -> list[bool]:
    """found: [n, 2] in pixels of the target."""
    return ((found - pair.points[1]).norm(dim=1) <= alpha * pair.box).tolist()


def score_pairs(
    files: Sequence[Path],
    folder: Path,
    look: Callable[[Path, str, int], Looked],
    alpha: float,
    progress: Progress = silent,
    failed: Callable[[str], None] = print,
) -> tuple[dict[str, Score], list[dict], list[list[Cell]]]:
    """look: features of a picture, by its file, its category and a number of its own; asked for once in a category.
    failed: is told why a pair is skipped.

    → Scores by the pairs' names; what was skipped, and why; and the first pair of each category, drawn, a row each.
    """
    pairs = []
    scores = {}
    skipped = []
    drawn = {}
    looked = {}
    numbers = {}

    def skip(name: str, error: Exception) -> None:
        failed(explain(error))
        skipped.append({"pair": name, "error": explain(error)})

    for file in files:
        try:
            pairs.append(read_pair(file, folder))
        except InputError as error:
            skip(file.stem, error)
    pairs.sort(key=lambda pair: (pair.category, pair.name))
    for pair in progress(pairs, len(pairs), "pairs"):
        if pair.category not in drawn:
            looked.clear()  # a picture belongs to one category: what was kept is not needed again
        try:
            for path in (pair.source, pair.target):
                if path not in looked:
                    looked[path] = look(path, pair.category, numbers.setdefault(path, len(numbers)))
        except InputError as error:
            skip(pair.name, error)
            continue
        a = looked[pair.source]
        b = looked[pair.target]
        start = places(pair.points[0], *a.size)
        found, _ = nearest(a.f, b.f, start, b.size[1], b.size[0])
        score = scores[pair.name] = Score(pair.category, correct(pixels(found, *b.size), pair, alpha))
        if pair.category not in drawn:
            colours = [RIGHT if ok else WRONG for ok in score.correct]
            label = f"{pair.category}: {sum(score.correct)} of {len(colours)} correct (green)"
            drawn[pair.category] = [(label, show.matches(a.image, b.image, start, found, colours))]
    if not scores:
        raise InputError(f"none of the {len(files)} pairs could be used")
    return scores, skipped, list(drawn.values())


def pck_table(scores: Iterable[Score]) -> list[dict]:
    """By category, and for all: pairs, points, and PCK in two ways that the literature has both of, 0 to 1.

    per image: the mean over pairs of the share of a pair's correct points. per point: correct points over all points.
    """
    scores = list(scores)
    groups = {
        category: [s for s in scores if s.category == category] for category in sorted({s.category for s in scores})
    }
    return [
        {
            "category": category,
            "pairs": len(group),
            "points": sum(len(s.correct) for s in group),
            "per image": sum(sum(s.correct) / len(s.correct) for s in group) / len(group),
            "per point": sum(sum(s.correct) for s in group) / sum(len(s.correct) for s in group),
        }
        for category, group in (groups | {"all": scores}).items()
    ]


def in_percent(value: str | int | float) -> str:
    """An entry of the table: shares in percent."""
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)
