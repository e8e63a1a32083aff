"""What several test files share: the authors' small random network, and small inputs for it."""

import os
from functools import cache
from pathlib import Path

# One thread: the networks here are small, and two that wait for each other on a busy machine take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach out
# The CPU, whatever else this machine has: results are compared to the bit. machine/test_device.py tests other devices.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from safetensors.torch import load_file

from minipnp.config import UNetConfig
from minipnp.files.configs import read_config
from minipnp.files.tensors import TensorFile
from minipnp.unet import UNet
from minipnp.weights import UNET, load_network

torch.backends.mps.is_available = cache(lambda: False)

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", default="short", metavar="HOW", help="short, long, or the number of one case")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever breaks the way to add a method sees it first."""
    items.sort(key=lambda item: item.path.name != "test_your_own_method.py")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="session")
def golden_unet() -> UNet:
    """The random network under which the authors' own code computed the vectors in tests/data/golden."""
    config = read_config(UNetConfig, GOLDEN / "config.json")
    return load_network(UNET, TensorFile(GOLDEN / "unet_tiny.safetensors"), config, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def golden():
    """golden("plug_and_play") → the tensors of that file."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture
def inputs(golden) -> dict[str, torch.Tensor]:
    """x: latent [1, 4, 16, 24], not square; null, text: embeddings [1, 77, 32]."""
    case = golden("pnp_diffusers_nonsquare")
    return {"x": case["z0"], "null": case["embed.empty"], "text": case["embed.target"]}
