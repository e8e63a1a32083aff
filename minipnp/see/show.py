"""Maps, clusters and matches as pictures."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from minipnp.files.images import to_image

# Dark to bright by way of blue, violet and orange: also in grey a higher value is a brighter one.
HEAT = torch.tensor([[0, 0, 12], [60, 15, 112], [150, 38, 128], [227, 89, 51], [251, 180, 41], [252, 255, 200]]) / 255
# Of places: upper left, upper right, lower left, lower right.
CORNERS = torch.tensor([[242, 204, 38], [217, 38, 51], [26, 140, 217], [26, 26, 51]]) / 255
NOWHERE = torch.zeros(0, 2)
Colour = tuple[int, int, int]


def as_picture(x: Tensor, size: tuple[int, int], smooth: bool = False) -> Image.Image:
    """[3 or 1, H, W] in 0 … 1 → RGB of `size` (width, height). smooth: bicubic, else each cell is a block."""
    height = size[1]
    width = size[0]
    how = {"mode": "bicubic"} if smooth else {"mode": "nearest-exact"}
    return to_image(2 * F.interpolate(x[None].float(), (height, width), **how).expand(1, 3, -1, -1) - 1)


def heat(x: Tensor) -> Tensor:
    """[H, W] in 0 … 1 → colours [3, H, W] in 0 … 1."""
    place = x.clamp(0, 1) * (len(HEAT) - 1)
    low = place.floor().long().clamp(max=len(HEAT) - 2)
    share = (place - low)[..., None]
    return ((1 - share) * HEAT[low] + share * HEAT[low + 1]).permute(2, 0, 1)


def over(picture: Image.Image, colours: Image.Image, share: float = 0.65) -> Image.Image:
    """Colours over the picture in grey. share: of the colours."""
    return Image.blend(ImageOps.grayscale(picture).convert("RGB"), colours, share)


def palette(n: int) -> list[Colour]:
    """n colours that are far from each other: hues by the golden ratio, brightness in turn."""
    golden = (math.sqrt(5) - 1) / 2
    colours = [colorsys.hsv_to_rgb((0.6 + i * golden) % 1, 0.85, (1.0, 0.75)[i // 5 % 2]) for i in range(n)]
    return [tuple(round(255 * c) for c in colour) for colour in colours]


def parts(labels: Tensor, picture: Image.Image, k: int) -> Image.Image:
    """Parts 0 … k−1 of cells or pixels [H, W], as colours over the picture."""
    colours = Image.fromarray(np.array(palette(k), dtype=np.uint8)[labels.numpy()])
    return over(picture, colours.resize(picture.size, Image.Resampling.NEAREST))


def coded(picture: Image.Image, places: Tensor, height: int, width: int) -> Image.Image:
    """Over the picture, for each of height × width cells, the colour of a place [height·width, 2] (x and y, 0 to 1).

    Each corner has a colour, and the places between them a blend.
    """
    x = places[:, :1]
    y = places[:, 1:]
    weights = (1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y
    blend = sum(weight * corner for weight, corner in zip(weights, CORNERS, strict=True))
    return over(picture, as_picture(blend.T.reshape(3, height, width), picture.size), 0.75)


def matches(
    a: Image.Image,
    b: Image.Image,
    places_a: Tensor = NOWHERE,
    places_b: Tensor = NOWHERE,
    colours: Sequence[Colour] | None = None,
    least: int = 384,
) -> Image.Image:
    """A and B side by side, with matching places [n, 2] as points of a colour, numbered, and a line between them.

    Pictures with a short side of less than `least` pixels are enlarged by a whole factor, pixel by pixel.
    """
    a, b = (ImageOps.scale(p, max(1, -(-least // min(p.size))), Image.Resampling.NEAREST) for p in (a, b))
    gap = least // 8
    page = Image.new("RGB", (a.width + gap + b.width, max(a.height, b.height)), "white")
    page.paste(a, (0, 0))
    page.paste(b, (a.width + gap, 0))
    ends = [
        ((x * a.width, y * a.height), (a.width + gap + u * b.width, v * b.height))
        for (x, y), (u, v) in zip(places_a.tolist(), places_b.tolist(), strict=True)
    ]
    colours = palette(len(ends)) if colours is None else colours
    lines = page.copy()
    for end, colour in zip(ends, colours, strict=True):
        ImageDraw.Draw(lines).line(end, fill=colour, width=3)
    page = Image.blend(page, lines, 0.6)
    draw = ImageDraw.Draw(page)
    r = max(9, least // 32)
    font = ImageFont.load_default(size=1.2 * r)
    for number, (end, colour) in enumerate(zip(ends, colours, strict=True), 1):
        dark = sum(w * c for w, c in zip((0.3, 0.59, 0.11), colour, strict=True)) < 140
        for x, y in end:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="white", width=2)
            draw.text((x, y), str(number), fill="white" if dark else "black", font=font, anchor="mm")
    return page
