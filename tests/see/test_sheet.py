"""Sheets of labelled pictures: sizes, labels, and what does not fit."""

import numpy as np
import pytest
from PIL import Image

from minipnp.see import sheet
from minipnp.see.sheet import side_by_side


def colours(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


def cells(page):
    """(top, left, height, width) of each picture, by the corners of the grey frames around them."""
    frame = (pixels(page) == 211).all(2)  # "lightgrey"
    found = []
    for y, x in np.argwhere(frame).tolist():
        if frame[y, x : x + 40].all() and frame[y : y + 40, x].all() and not (frame[y, x - 1] or frame[y - 1, x]):
            width, height = np.argmin(frame[y, x:]), np.argmin(frame[y:, x])
            found.append((y + 1, x + 1, int(height) - 2, int(width) - 2))
    return found


def test_small_pictures_are_enlarged_pixel_by_pixel():
    image = colours(64, 64)
    page = side_by_side([image, image], ["guidance", "VAE round trip"])
    assert page.mode == "RGB"
    found = cells(page)
    assert len(found) == 2 and found[0][0] == found[1][0]
    for top, left, height, width in found:
        assert (height, width) == (256, 256)
        cell = pixels(page)[top : top + height, left : left + width]
        assert np.array_equal(cell, pixels(image).repeat(4, 0).repeat(4, 1))


def test_one_row_keeps_every_pixel_and_a_grid_is_an_overview():
    image = colours(512, 576)
    page = side_by_side([image], ["a"])
    top, left, height, width = cells(page)[0]
    assert np.array_equal(pixels(page)[top : top + height, left : left + width], pixels(image))
    found = cells(side_by_side([[image, image], [image]], [["a", "b"], ["c"]]))
    assert [cell[2:] for cell in found] == [(288, 256)] * 3
    assert found[0][1] == found[2][1] < found[1][1]  # columns
    assert found[0][0] == found[1][0] < found[0][0] + 288 < found[2][0]  # rows


def ink(page):
    """Rows of the page that have dark text, where the pictures are white."""
    return (pixels(page).max(2) < 100).any(1)


def lines_of_text(page) -> int:
    rows = ink(page)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], rows.astype(int)])) == 1)
    return sum(1 for i, s in enumerate(starts) if i == 0 or s - starts[i - 1] > 12)  # dots of i and j are no lines


def test_long_labels_are_wrapped_and_end_in_an_ellipsis():
    white = Image.new("RGB", (64, 64), "white")
    long = "a bronze horse in a museum, soft light from the left " * 40
    assert lines_of_text(side_by_side([white], ["horse"])) == 1
    assert lines_of_text(side_by_side([white], ["HHH " * 12])) == 2
    page = side_by_side([white, white], ["horse", long])
    assert lines_of_text(page) == sheet.LABEL_LINES
    assert page.size == side_by_side([white, white], ["horse", long * 9]).size
    dark = np.flatnonzero((pixels(page).max(2) < 100).any(0))
    assert dark.max() < page.width - 8 and dark.min() >= 8  # inside the margins


def test_wrapping():
    class Font:  # one pixel per character
        getlength = staticmethod(len)

    def wrap(text):
        return sheet._wrapped(text, Font, 10)

    assert wrap("") == []
    assert wrap("a horse") == ["a horse"]
    assert wrap("a horse of bronze") == ["a horse of", "bronze"]
    assert wrap("abcdefghijklm no") == ["abcdefghij", "klm no"]  # a word that is too long is cut
    assert wrap("a b\nc\td\0e") == ["a b c d e"]
    assert wrap("one two three four five six seven eight") == ["one two", "three four", "five six…"]
    assert wrap("x" * 30) == ["x" * 10] * 3
    assert wrap("x" * 31) == ["x" * 10, "x" * 10, "x" * 9 + "…"]
    assert sheet._wrapped("abcde", Font, 0) == ["a", "b", "…"]  # narrower than a character, and comes to an end
    assert wrap("tr\u00e8s") == ["tres"]  # the font has no accents


@pytest.mark.parametrize(
    "text", ["", " ", "日本語 🐎👩‍🚀", "\udcff", "\0\x1b[0m", "עברית العربية", "x" * 10_000, "\u0301" * 99]
)
def test_text_that_cannot_be_drawn(text):
    page = side_by_side([colours(64, 64)], [text])
    assert len(cells(page)) == 1


def test_labels_must_match():
    with pytest.raises(ValueError, match="one label for each"):
        side_by_side([colours(), colours()], ["one"])
