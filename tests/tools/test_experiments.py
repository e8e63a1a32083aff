"""The measurement of which layer's f holds the layout, in two steps on one picture."""

import re
from pathlib import Path

from PIL import Image

from minipnp.files.known_words import advice_of
from tools.experiments.__main__ import main

EXAMPLES = Path(__file__).parents[2] / "weights/bundled/examples"


def test_every_layer_has_a_row_alone_and_beside_self_attention(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/cat.png").write_bytes((EXAMPLES / "cat-twemoji.png").read_bytes())
    out = tmp_path / "o/layers.png"
    given = ["--prompt=a noto icon of a dog on a red background", "--metrics=edges", "--steps=2", f"--out={out}"]
    assert main(["layers", str(tmp_path / "pictures"), *given]) == 0
    rows = re.findall(
        r"^\| (A and )?f of layer (\d+) \| (\d+) × \3 \| (\d+)% \| ", capsys.readouterr().out, re.MULTILINE
    )
    assert [int(layer) for _, layer, *_ in rows] == [*range(12), *range(12)]
    assert [beside for beside, *_ in rows] == [""] * 12 + ["A and "] * 12
    assert [int(cells) for *_, cells, _ in rows[:12]] == [4] * 3 + [8] * 3 + [16] * 3 + [32] * 3
    change = {int(layer): int(x) for beside, layer, _, x in rows if not beside}
    assert change[7] > change[4] >= change[0]  # as it is with more steps
    assert Image.open(out).width > 13 * 128


def test_maps_of_words_find_the_object_at_the_share_that_the_bundled_model_advises(capsys):
    assert main(["word-maps", "--limit=2"]) == 0
    rows = re.findall(r"^\| ([\d.]+) \| (\S+) \| (\S+) \| (\S+) \|$", capsys.readouterr().out, re.MULTILINE)
    best = max(rows, key=lambda row: sum(map(float, row[1:])))
    assert len(rows) == 4 and float(best[0]) == advice_of(EXAMPLES.parent).share
