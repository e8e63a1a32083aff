"""The fixed lists that the evaluation runs over. → tools/bundled/benchmark.json, which is in the repository

The pairs go with their guidance pictures to weights/bundled/benchmark too, where `minipnp evaluate` needs no icons.
Settings are chosen on another list, weights/bundled/choosing, which shares no guidance picture with it.

Modelled on ImageNet-R-TI2I: one class in many renditions. A pair is a guidance picture and a prompt that asks for
another style, another concept of the same kind, or both; or a guidance picture in black and a prompt in colour. A third
of the guidance of each kind was held back from training. Prompts name what the finished model knows. Icons whose
foreground cannot be told from the background by colour are left out, as guidance and as what a prompt asks for: the
layout could not be measured.
"""

import json
import random
from itertools import product
from pathlib import Path
from typing import NamedTuple

from minipnp.files.atomic import write_text_atomic
from minipnp.files.hub import WEIGHTS
from minipnp.files.images import to_image, write_png
from minipnp.measure.icons import foreground, iou
from tools.bundled import run
from tools.bundled.captions import caption
from tools.bundled.concepts import (
    COLOURS,
    CONCEPTS,
    FINISHED_CONCEPTS,
    FINISHED_STYLES,
    HELD_OUT_CONCEPTS,
    HELD_OUT_STYLE,
    PRIMITIVE,
)
from tools.bundled.data import CONCEPT_WORDS, STYLE_WORDS, Icons, draw, plain
from tools.bundled.fetch import DATA

PLACE = Path(__file__).with_name("benchmark.json")
SIDE = 128
SHIPPED = {"pairs": WEIGHTS / "bundled" / "benchmark", "choosing": WEIGHTS / "bundled" / "choosing"}
KINDS = ("style", "concept", "both", "silhouette")
GUIDANCES = {"pairs": (16, 8), "choosing": (8, 4)}  # pictures of each kind: trained on, held back
SEPARATED = 0.8  # least IoU of the mask by colour with the true coverage
COVERS = (0.06, 0.75)  # of the picture
COLOURED = [style for style in FINISHED_STYLES if style not in PRIMITIVE]
CATEGORY = {c.words: c.category for c in CONCEPTS}


class Said(NamedTuple):
    """A picture in words."""

    style: str
    concept: str
    colour: str

    @property
    def caption(self) -> str:
        return caption(*self)


class Pair(NamedTuple):
    kind: str
    held_out: bool
    guidance: Said
    target: Said


def kin(concept: str) -> list[str]:
    """Other concepts of its category that the model knows; a thing is unlike other things."""
    category = CATEGORY[concept]
    return [c for c in FINISHED_CONCEPTS if CATEGORY[c] == category != "thing" and c != concept]


def guided_by(kind: str, held_out: bool) -> list[tuple[str, str]]:
    """Styles and concepts that guidance pictures of this kind may have."""
    concepts = HELD_OUT_CONCEPTS if held_out else FINISHED_CONCEPTS
    if kind == "silhouette":
        return list(product(PRIMITIVE, concepts))
    foreign = list(product([HELD_OUT_STYLE], FINISHED_CONCEPTS)) if held_out else []
    # Where the prompt keeps the concept, it is one that the model knows; where it keeps the style, so is that.
    return foreign if kind == "style" and held_out else list(product(COLOURED, concepts)) + foreign * (kind == "both")


def asked_for(kind: str, style: str, concept: str) -> list[tuple[str, str]]:
    """Styles and concepts that a prompt may have for this guidance."""
    styles = [s for s in (COLOURED if kind == "silhouette" else FINISHED_STYLES) if s != style]
    if kind == "style" or (kind == "silhouette" and concept in FINISHED_CONCEPTS):
        return list(product(styles, [concept]))
    return list(product([style] if kind == "concept" else styles, kin(concept)))


def separated(icons: Icons, said: Said) -> bool:
    """Whether there is such an icon, and its mask by colour is its true one."""
    index = icons.of(said.style, said.concept)
    if index is None:
        return False
    x, alpha = draw(icons, plain([index], [said.colour]))
    true = alpha[:, 0] > 0.5
    return COVERS[0] <= true.float().mean() <= COVERS[1] and bool(iou(foreground(x), true) >= SEPARATED)


def make(icons: Icons, seed: int = 0) -> dict[str, list]:
    """pairs, choosing: as in GUIDANCES; samples: what is drawn from text alone, every icon once; pictures: those held
    back, of styles and concepts that the classifier has a word for, one of the two at least.
    """
    r = random.Random(seed)
    taken = set()  # the guidance pictures of all lists
    lists = {name: [] for name in GUIDANCES}
    for kind, held_out in product(KINDS, (False, True)):
        drawn = guided_by(kind, held_out)
        r.shuffle(drawn)
        left = iter(drawn)
        for name, counts in GUIDANCES.items():
            found = 0
            while found < counts[held_out]:
                style, concept = next(left)
                if (style, concept) in taken:
                    continue
                guidance = Said(style, concept, r.choice(list(COLOURS)))
                colours = [c for c in COLOURS if c != guidance.colour]
                targets = [Said(s, c, r.choice(colours)) for s, c in asked_for(kind, style, concept)]
                r.shuffle(targets)
                target = next((t for t in targets if separated(icons, t)), None)
                if target is not None and separated(icons, guidance):
                    lists[name].append(Pair(kind, held_out, guidance, target))
                    taken.add((style, concept))
                    found += 1
    samples = [
        Said(style, concept, r.choice(list(COLOURS))) for concept in FINISHED_CONCEPTS for style in FINISHED_STYLES
    ]
    held_out = icons.held_out()
    pictures = [
        Said(STYLE_WORDS[s], CONCEPT_WORDS[c], r.choice(list(COLOURS)))
        for s, c in zip(held_out.style, held_out.concept, strict=True)
        if STYLE_WORDS[s] in FINISHED_STYLES or CONCEPT_WORDS[c] in FINISHED_CONCEPTS
    ]
    return lists | {"samples": samples, "pictures": pictures}


def read() -> dict[str, list]:
    lists = json.loads(PLACE.read_text(encoding="utf-8"))
    pairs = {
        name: [Pair(kind, held_out, Said(*g), Said(*t)) for kind, held_out, g, t in lists[name]] for name in GUIDANCES
    }
    return pairs | {name: [Said(*said) for said in lists[name]] for name in ("samples", "pictures")}


def ship(icons: Icons, pairs: list[Pair], folder: Path) -> None:
    """The pairs as `minipnp.measure.benchmarks` reads them: a PNG for each guidance picture, and benchmark.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    rows = []
    for pair in pairs:
        style, concept, colour = pair.guidance
        image = f"{'-'.join('_'.join(word.split()) for word in (concept, style, colour))}.png"
        if not (folder / image).exists():
            x, _ = draw(icons, plain([icons.of(style, concept)], [colour]))
            write_png(to_image(x), folder / image, {})
        rows.append({
            "image": image, "source": pair.guidance.caption, "prompt": pair.target.caption,
            "word": f"{concept}={pair.target.concept}", "asked": list(pair.target), "kind": pair.kind,
            "held_out": pair.held_out,
        })  # fmt: skip
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_text_atomic(f'{{"pairs": [\n{lines}\n]}}\n', folder / "benchmark.json")


def main() -> None:
    icons = Icons.read(DATA, SIDE)
    lists = make(icons)
    for name, folder in SHIPPED.items():
        ship(icons, lists[name], folder)
    blocks = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in lists.items()]
    write_text_atomic("{\n" + ",\n".join(blocks) + "\n}\n", PLACE)


if __name__ == "__main__":
    run(main)
