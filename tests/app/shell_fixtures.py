"""The fixtures of the command line's tests. A plugin, as a second conftest.py would take the place of the first."""

import functools

import pytest
import torch

import minipnp
from minipnp.app import translate as commands
from minipnp.unet import UNet


@pytest.fixture(scope="session")
def load_once():
    """The model, loaded once for all tests."""
    return functools.cache(minipnp.load)


@pytest.fixture
def here(tmp_path, monkeypatch, load_once):
    """An empty folder to run in, with its own memory of checksums, on one thread."""
    monkeypatch.setattr(minipnp, "load", load_once, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    torch.set_num_threads(threads)


@pytest.fixture
def unloaded(monkeypatch):
    """Fails where the model is loaded: what is refused must be refused before."""

    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(minipnp, "load", loaded)


@pytest.fixture
def passes(monkeypatch):
    """Of each pass of the network, how many texts it was for."""
    seen = []
    tap = UNet.tap
    monkeypatch.setattr(UNet, "tap", lambda net, x, t, c, *a, **k: seen.append(len(c)) or tap(net, x, t, c, *a, **k))
    return seen


@pytest.fixture
def edits(monkeypatch):
    """What `translate` has edited: (original, prompts, settings, negative) of each."""
    seen = []
    edit = commands.edit
    monkeypatch.setattr(commands, "edit", lambda *args: seen.append(args[:4]) or edit(*args))
    return seen
