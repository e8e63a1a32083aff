"""The tables of what the paper claims, on made-up results; and how near a picture is to an icon that is known."""

import pytest
import torch

from minipnp.measure.icons import Classifier, Vocabulary
from minipnp.measure.report import Result
from tools.bundled import claims
from tools.bundled.data import COLOUR_WORDS, Icons, Placed, draw, plain
from tools.bundled.memory import Memory, cut_out

KINDS = {"0": "style", "1": "style", "2": "silhouette", "3": "concept"}


def results(iou, text, pairs=KINDS) -> dict[str, Result]:
    """Of every pair, with a little that is its own."""
    values = {"edges": 0.5, "fidelity": text, "style_left": 0.1, "colour_left": 0.2}
    return {
        name: Result(f"g{name}", values | {"iou": iou + 0.01 * int(name), "probability": text + 0.01 * int(name)})
        for name in pairs
    }


@pytest.fixture
def found():
    return {
        "pnp": results(0.8, 0.7),
        "pnp-without-f": results(0.7, 0.75),
        "sdedit-0.5": results(0.9, 0.3),
        "sdedit-0.8": results(0.6, 0.66),
        "sdedit-0.9": results(0.5, 0.7),
        "pnp-negative": results(0.8, 0.5, ["2"]),
    }


def test_a_difference_is_over_the_pairs_that_both_have(found):
    more = claims.difference(found, "pnp-without-f", "iou", list(KINDS))
    assert more == pytest.approx((0.1, 0.1, 0.1))
    assert claims.difference(found, "pnp-without-f", "psnr", list(KINDS)) is None
    alone = claims.difference(found, "pnp-negative", "probability", list(KINDS))
    assert alone.mean == pytest.approx(0.2)  # of the one silhouette


def test_a_verdict_is_of_layout_and_of_text(found):
    pairs = list(KINDS)
    assert claims.verdict(found, "sdedit-0.9", pairs) == "above in layout"
    assert claims.verdict(found, "sdedit-0.8", pairs) == "above in layout, above in text"
    assert claims.verdict(found, "sdedit-0.5", pairs) == "below in layout, above in text"
    assert claims.verdict(found, "pnp", pairs) == "no difference seen"


def test_strengths_with_about_as_much_text_are_marked(found):
    rows = {row.split(" | ")[0].strip("| "): row for row in claims.against_others(found, ["0", "1", "2"])}
    assert "**SDEdit 0.8**" in rows and "**SDEdit 0.9**" in rows and "SDEdit 0.5" in rows
    assert (
        rows["**SDEdit 0.8**"].endswith("| above in layout, above in text |") and "| 0.94 |" in rows["**SDEdit 0.8**"]
    )


def test_all_claims_are_said_with_what_there_is(found):
    text = claims.claims(found, KINDS)
    assert "4 pairs." in text and "3 pairs of another style and of silhouettes" in text and "1 silhouettes." in text
    assert "| Plug-and-Play without f | +0.100 [+0.100, +0.100] | +0.000 [+0.000, +0.000] |" in text
    assert "Plug-and-Play without A" not in text  # it was not measured


@pytest.fixture(scope="module")
def memory():
    """Two icons, a bar that stands and one that lies, and a classifier that has learnt nothing."""
    rgba = torch.zeros(2, 4, 64, 64, dtype=torch.uint8)
    rgba[0, :, 4:60, 28:36] = 255
    rgba[1, :, 28:36, 4:60] = 255
    icons = Icons(rgba, torch.tensor([0, 0]), torch.tensor([0, 1]))
    torch.manual_seed(0)
    words = Vocabulary(("noto",), ("a", "b"), tuple(COLOUR_WORDS))
    return Memory(icons, Classifier(words, 64, (16, 16)).eval())


def test_an_icon_is_found_whatever_its_place_and_size(memory):
    one = plain([0], ["blue"])
    elsewhere = Placed(one.icon, one.flip, 0.6 * one.scale, torch.tensor([[0.3, -0.2]]), one.colour, one.background)
    for place in (one, elsewhere):
        near = memory.nearest(draw(memory.icons, place)[0], "blue")
        assert near["nearest_iou"] > 0.9
    assert memory.nearest(draw(memory.icons, one)[0], "blue")["nearest_cosine"] == pytest.approx(1, abs=1e-4)


def test_what_is_no_icon_is_far(memory):
    x = torch.full((1, 3, 64, 64), -0.5)
    frame = torch.zeros(64, 64, dtype=torch.bool)
    frame[10:54, 10:54] = True
    frame[14:50, 14:50] = False  # a square's outline
    x[0][:, frame] = 1
    assert memory.nearest(x, "blue")["nearest_iou"] < 0.5


def test_an_outline_is_brought_to_one_square():
    mask = torch.zeros(2, 40, 40, dtype=torch.bool)
    mask[0, 10:20, 5:35] = True
    cut = cut_out(mask)
    assert cut.shape == (2, 32, 32) and cut[0].all() and not cut[1].any()
