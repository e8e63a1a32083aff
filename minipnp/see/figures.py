"""Labelled figures of features, as the paper's Fig. 3, 4 and 6, and of words' cross-attention.

held: a quantity by (layer, t, picture's name), as `collect.features` gives it. smooth: maps are enlarged bicubically,
else each cell is seen as a block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL.Image import Image
from torch import Tensor

from minipnp.see import attention, pca, show
from minipnp.see.collect import Seen, cells_of
from minipnp.see.sheet import sheet
from minipnp.slots import Layer


@dataclass(frozen=True)
class Picture:
    """A picture as it is looked at: its name and text, its x_t, and what the records say of it."""

    name: str
    image: Image
    prompt: str
    seen: Seen
    about: dict


Held = Mapping[tuple[Layer, int, str], Tensor]


def named(layer: Layer, seen: Seen) -> str:
    height, width = cells_of(layer, seen)
    return f"layer {layer.row} ({width} × {height} cells)"


def fig_3(of: str, pictures: Sequence[Picture], layers: Sequence[Layer], t: int, held: Held, smooth: bool) -> Image:
    """Rows: layers; columns: pictures."""
    rows = [[(p.name, p.image) for p in pictures]]
    for layer in layers:
        (components,) = pca.joint([[held[layer, t, p.name] for p in pictures]])
        maps = zip(pictures, components, strict=True)
        label = f"{of} of {{}}, t = {t}"
        rows.append([(label.format(named(layer, p.seen)), coloured(x, p, smooth)) for p, x in maps])
    return sheet(*rows)


def fig_4(of: str, pictures: Sequence[Picture], layer: Layer, ts: Sequence[int], held: Held, smooth: bool) -> Image:
    """Rows: pictures; columns: timesteps, noisiest first."""
    components = pca.joint([[held[layer, t, p.name] for p in pictures] for t in ts])
    rows = []
    for i, p in enumerate(pictures):
        label = f"{of} of {named(layer, p.seen)}, t = "
        maps = [(label + str(t), coloured(group[i], p, smooth)) for t, group in zip(ts, components, strict=True)]
        rows.append([(p.name, p.image), *maps])
    return sheet(*rows)


def fig_6(p: Picture, layers: Sequence[Layer], ts: Sequence[int], held: Held, smooth: bool) -> Image:
    """Of one picture, rows: layers (and timesteps); columns: three leading components of A as colours, each in grey."""
    rows = []
    for layer, t in ((layer, t) for layer in layers for t in ts):
        x = pca.spread(attention.components(held[layer, t, p.name], *cells_of(layer, p.seen)))
        maps = {f"A of {named(layer, p.seen)}, t = {t}": x} | {f"component {i + 1}": x[i : i + 1] for i in range(3)}
        shown = [(label, show.as_picture(m, p.image.size, smooth)) for label, m in maps.items()]
        rows.append([(p.name, p.image), *shown])
    return sheet(*rows)


def word_figure(p: Picture, maps: Sequence[tuple[str, Tensor]]) -> Image:
    """The picture, and over it each word's map, its own range spread over the colours; the range is in the label."""
    shown = [(p.name, p.image)]
    for word, x in maps:
        colours = show.as_picture(show.heat(pca.spread(x[None])[0]), p.image.size, smooth=True)
        shown.append((f"{word}: {x.min():.3f} to {x.max():.3f}", show.over(p.image, colours)))
    columns = math.ceil(len(shown) / math.ceil(len(shown) / 5))
    return sheet(*(shown[i : i + columns] for i in range(0, len(shown), columns)))


def coloured(components: Tensor, p: Picture, smooth: bool) -> Image:
    return show.as_picture(pca.spread(components), p.image.size, smooth)
