"""The fixed lists that the evaluation runs over. → tools/bundled/benchmark.json, which is in the repository

The pairs go with their guidance pictures to weights/bundled/benchmark too, where `minipnp evaluate` needs no icons.

Modelled on ImageNet-R-TI2I: one class in many renditions. A pair is a guidance picture and a prompt that asks for
another style, another concept of the same kind, or both; or a guidance picture in black and a prompt in colour. Half of
the guidance of each kind was held back from training. Icons whose foreground cannot be told from the background by
colour are left out, as guidance and as what a prompt asks for: the layout could not be measured.
"""

import json
import random
from itertools import islice, product
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
    HELD_OUT_CONCEPTS,
    HELD_OUT_STYLE,
    PRIMITIVE,
    STYLES,
    TRAINED_CONCEPTS,
    TRAINED_STYLES,
)
from tools.bundled.data import Icons, draw, plain
from tools.bundled.fetch import DATA

PLACE = Path(__file__).with_name("benchmark.json")
SHIPPED, SIDE = WEIGHTS / "bundled" / "benchmark", 128
GUIDANCES, PROMPTS = 19, 2  # pictures of each kind that were trained on, as many that were not; prompts for each
SEPARATED = 0.8  # least IoU of the mask by colour with the true coverage
COVERS = (0.06, 0.75)  # of the picture
COLOURED = [style for style in TRAINED_STYLES if style not in PRIMITIVE]
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
    return [c for c in TRAINED_CONCEPTS if CATEGORY[c] == category != "thing" and c != concept]


def guided_by(kind: str, held_out: bool) -> list[tuple[str, str]]:
    """Styles and concepts that guidance pictures of this kind may have."""
    concepts = HELD_OUT_CONCEPTS if held_out else TRAINED_CONCEPTS
    if kind == "silhouette":
        return list(product(PRIMITIVE, concepts))
    foreign = list(product([HELD_OUT_STYLE], TRAINED_CONCEPTS)) if held_out else []
    # Where the prompt keeps the concept, it is one that the model knows; where it keeps the style, so is that.
    return foreign if kind == "style" and held_out else list(product(COLOURED, concepts)) + foreign * (kind == "both")


def asked_for(kind: str, style: str, concept: str) -> list[tuple[str, str]]:
    """Styles and concepts that a prompt may have for this guidance."""
    styles = [s for s in (COLOURED if kind == "silhouette" else TRAINED_STYLES) if s != style]
    if kind == "style" or (kind == "silhouette" and concept in TRAINED_CONCEPTS):
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
    """pairs; samples: what is drawn from text alone, every concept three times; pictures: every icon held back."""
    r = random.Random(seed)
    pairs = []
    for kind, held_out in product(("style", "concept", "both", "silhouette"), (False, True)):
        drawn, found = guided_by(kind, held_out), 0
        r.shuffle(drawn)
        for style, concept in drawn:
            guidance = Said(style, concept, r.choice(list(COLOURS)))
            colours = [c for c in COLOURS if c != guidance.colour]
            targets = [Said(s, c, r.choice(colours)) for s, c in asked_for(kind, style, concept)]
            r.shuffle(targets)
            if found < GUIDANCES and separated(icons, guidance):
                targets = list(islice((t for t in targets if separated(icons, t)), PROMPTS))
                pairs += [Pair(kind, held_out, guidance, t) for t in targets if len(targets) == PROMPTS]
                found += len(targets) == PROMPTS
    samples = [
        Said(style, concept, r.choice(list(COLOURS)))
        for concept in TRAINED_CONCEPTS for style in r.sample(TRAINED_STYLES, 3)
    ]  # fmt: skip
    held_out = icons.held_out()
    pictures = [
        Said(list(STYLES.values())[s], CONCEPTS[c].words, r.choice(list(COLOURS)))
        for s, c in zip(held_out.style, held_out.concept, strict=True)
    ]
    return {"pairs": pairs, "samples": samples, "pictures": pictures}


def read() -> dict[str, list]:
    lists = json.loads(PLACE.read_text(encoding="utf-8"))
    pairs = [Pair(kind, held_out, Said(*g), Said(*t)) for kind, held_out, g, t in lists["pairs"]]
    return {"pairs": pairs, **{name: [Said(*said) for said in lists[name]] for name in ("samples", "pictures")}}


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
    ship(icons, lists["pairs"], SHIPPED)
    blocks = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in lists.items()]
    write_text_atomic("{\n" + ",\n".join(blocks) + "\n}\n", PLACE)


if __name__ == "__main__":
    run(main)
