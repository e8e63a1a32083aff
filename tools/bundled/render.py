"""Step 2: the icons as pixels, by resvg. → data/bundled/icons-SIDE.npz, for 128 and 64 px

In a file: rgba, uint8 [n, SIDE, SIDE, 4], with straight alpha; style and concept, their words.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from minipnp.errors import InputError
from minipnp.files.atomic import atomic
from tools.bundled import run
from tools.bundled.concepts import CONCEPTS, STYLES, Concept
from tools.bundled.fetch import DATA

SIDES = (128, 64)


def file_name(side: int) -> str:
    return f"icons-{side}.npz"


def icon_of(icons: dict, concept: Concept) -> dict | None:
    """The icon's own entry and what it inherits: body, size, flips. None: the set does not have it."""
    for name in concept.icons:
        entry, parents = {}, 0
        while name in icons.get("aliases", {}) and parents < 6:
            alias = icons["aliases"][name]
            entry, name, parents = {**alias, **entry}, alias["parent"], parents + 1
        if name in icons["icons"]:
            return {**{k: icons[k] for k in ("width", "height") if k in icons}, **icons["icons"][name], **entry}
    return None


def svg(icon: dict) -> str:
    """The icon in the middle of a square."""
    left, top, width, height = (icon.get(k, d) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
    body, side = icon["body"], max(width, height)
    if icon.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left + (width - side) / 2} {top + (height - side) / 2} {side} {side}">{body}</svg>'
    )


def pixels(drawing: str, side: int) -> np.ndarray:
    """SVG → uint8 [side, side, 4]; `currentColor` is black."""
    try:
        import resvg_py
    except ImportError:
        raise InputError("resvg-py is not installed: pip install -c constraints.txt -e '.[train]'") from None
    png = bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=side, height=side, skip_system_fonts=True))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def render(sets: dict[str, dict], concepts: tuple[Concept, ...], side: int) -> dict[str, np.ndarray]:
    found = [(style, c.words, icon) for name, style in STYLES.items() for c in concepts
             if (icon := icon_of(sets[name], c)) is not None]  # fmt: skip
    rgba = np.stack([pixels(svg(icon), side) for _, _, icon in tqdm(found, f"render {side} px")])
    return {
        "rgba": rgba,
        "style": np.array([style for style, _, _ in found]),
        "concept": np.array([words for _, words, _ in found]),
    }


def sheet(icons: dict[str, np.ndarray]) -> Image.Image:
    """All concepts with their words, a row each, a column per set: to see that names and pictures agree."""
    side, across = icons["rgba"].shape[1], 4
    width, down = 100 + len(STYLES) * (side + 2), -(-len(CONCEPTS) // across)
    page = Image.new("RGB", (across * width, down * (side + 2)), "white")
    draw = ImageDraw.Draw(page)
    corner = {c.words: (j // down * width, j % down * (side + 2)) for j, c in enumerate(CONCEPTS)}
    for words, (x, y) in corner.items():
        draw.text((x + 4, y + side // 2 - 6), words, fill="black")
    column = {style: 100 + i * (side + 2) for i, style in enumerate(STYLES.values())}
    for rgba, style, words in zip(icons["rgba"], icons["style"], icons["concept"], strict=True):
        picture, (x, y) = Image.fromarray(rgba), corner[words]
        page.paste(picture, (x + column[style], y), picture)
    return page


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sheet", type=Path, help="also write an overview of all icons to this PNG")
    args = parser.parse_args(argv)
    sets = {}
    for side in SIDES:
        place = args.data / file_name(side)
        if not place.exists():
            if not sets:
                sets = {name: read_set(args.data / "sets" / f"{name}.json") for name in STYLES}
                check(sets)
            icons = render(sets, CONCEPTS, side)
            with atomic(place) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **icons)
    if args.sheet:
        with np.load(args.data / file_name(SIDES[-1])) as icons:
            sheet(icons).save(args.sheet)


def read_set(path: Path) -> dict:
    if not path.exists():
        raise InputError(f"{path}: not there; run `python -m tools.bundled.fetch` first")
    return json.loads(path.read_text(encoding="utf-8"))


def check(sets: dict[str, dict]) -> None:
    for concept in CONCEPTS:
        missing = [name for name, icons in sets.items() if icon_of(icons, concept) is None]
        if len(missing) > 1:
            raise InputError(f"the concept {concept.words!r} is in too few sets, not in {', '.join(missing)}")


if __name__ == "__main__":
    run(main)
