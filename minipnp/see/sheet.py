"""Sheets of labelled pictures."""

import math
import unicodedata

from PIL import Image, ImageDraw, ImageFont, ImageOps

Cell = tuple[str, Image.Image]  # a label and a picture

LABEL_LINES = 3


def sheet(*rows: list[Cell]) -> Image.Image:
    pictures, labels = ([[cell[k] for cell in row] for row in rows] for k in (1, 0))
    return side_by_side(pictures, labels) if len(rows) > 1 else side_by_side(pictures[0], labels[0])


def side_by_side(images, labels, cell: int = 256) -> Image.Image:
    """Labelled pictures on white: one row (lists of pictures and of texts), or a grid (lists of such rows).

    Pictures whose short side is below `cell` pixels are enlarged by a whole factor, pixel by pixel, until it is not;
    in a grid, which is an overview, larger ones are reduced by a whole factor, but not below `cell`. A label is
    wrapped to its column's width and ends in an ellipsis after LABEL_LINES lines.
    """
    grid = not isinstance(images[0], Image.Image)
    images, labels = (images, labels) if grid else ([images], [labels])
    if [len(row) for row in images] != [len(row) for row in labels]:
        raise ValueError("side_by_side needs one label for each picture")
    rows = [[scaled(image, cell, reduce=grid) for image in row] for row in images]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    font = ImageFont.load_default(size=max(16, min(widths) // 25))
    gap = int(font.size)
    line = round(1.3 * font.size)
    texts = [[_wrapped(text, font, width) for text, width in zip(row, widths, strict=False)] for row in labels]
    tops = [gap]  # of each row, and of what would follow
    for row, text in zip(rows, texts, strict=True):
        tops.append(tops[-1] + max(image.height for image in row) + line * max(map(len, text)) + 2 * gap)
    page = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), tops[-1] - gap // 2), "white")
    draw = ImageDraw.Draw(page)
    for row, text, top in zip(rows, texts, tops[:-1], strict=True):
        left = gap
        under = top + max(image.height for image in row) + gap // 2
        for image, lines, width in zip(row, text, widths, strict=False):
            draw.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline="lightgrey")
            page.paste(image, (left, top))
            for i, words in enumerate(lines):
                draw.text((left, under + i * line), words, fill="black", font=font)
            left += width + gap
    return page


def scaled(image: Image.Image, cell: int = 256, reduce: bool = False) -> Image.Image:
    """As `side_by_side` has it; what is so already stays as it is."""
    short = min(image.size)
    if short < cell:
        return ImageOps.scale(image, math.ceil(cell / short), Image.Resampling.NEAREST)
    return image.reduce(short // cell) if reduce else image


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """text in at most LABEL_LINES lines of at most `width` pixels, broken at spaces where there are any."""
    text = unicodedata.normalize("NFKD", text).translate(str.maketrans("–—×→", "--x>"))  # the font has few accents
    text = "".join(c if c.isprintable() else " " for c in text if unicodedata.category(c) != "Mn")
    rest = " ".join(text.split())
    lines = []
    while rest and len(lines) < LABEL_LINES:
        end = next((n for n in range(1, len(rest) + 1) if font.getlength(rest[:n]) > width), len(rest) + 1) - 1
        if end < len(rest) and (space := rest.rfind(" ", 0, end + 1)) > 0:
            end = space
        lines.append(rest[: max(1, end)].strip())
        rest = rest[max(1, end) :].strip()
    if rest:
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1].rstrip()
        lines[-1] += "…"
    return lines
