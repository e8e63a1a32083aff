"""A method of your own: that of docs/your-own-method.md, as it stands there, from the shell and from Python."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from minipnp.app.cli import main
from minipnp.methods import registry

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/your-own-method.md").read_text(encoding="utf-8"), re.DOTALL)
HORSE = ROOT / "weights/bundled/examples/horse-noto.png"
PROMPT = "--prompt=a flat icon of a cow on a blue background"


@pytest.fixture
def method(monkeypatch):
    """What the page's first block defines, with its entry in the list of methods."""
    defined = {"__name__": "keep_keys"}
    exec(BLOCKS[0], defined)
    monkeypatch.setitem(registry.METHODS, "keep-keys", defined["METHOD"])
    return defined


def test_it_runs_from_the_command_line(method, tmp_path, capsys):
    argv = ["translate", str(HORSE), "--method=keep-keys", PROMPT, "--steps=2", "--model=bundled", "--device=cpu"]
    for share in ("0", "1"):
        assert main([*argv, f"--tau-k={share}", f"--out={tmp_path / share}"]) == 0
    settings = json.loads((tmp_path / "1" / "run.json").read_text())["settings"]
    assert settings["method"] == "keep-keys" and settings["tau_k"] == 1 and settings["steps"] == 2
    pictures = [Image.open(tmp_path / share / "translation.png").tobytes() for share in ("0", "1")]
    assert pictures[0] != pictures[1]  # the keys reach the picture
    assert main([*argv, "--tau-k=2"]) == 2
    assert "--tau-k: '2': give a share from 0 to 1" in capsys.readouterr().err


def test_its_options_are_in_the_help(method, capsys):
    with pytest.raises(SystemExit):
        main(["translate", "--help"])
    assert "--tau-k X" in (shown := capsys.readouterr().out) and "attend with the original's keys" in shown


def test_it_runs_from_python(method, monkeypatch):
    monkeypatch.chdir(ROOT)
    saved = []
    monkeypatch.setattr(Image.Image, "save", lambda image, name: saved.append((name, image.size)))
    exec(BLOCKS[1], method)
    assert saved == [("cow.png", (128, 128))]
    assert method["made"].shape == (1, 3, 128, 128) and torch.isfinite(method["made"]).all()
