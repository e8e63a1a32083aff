"""Small helpers of the parity tests: a network of ours with random weights, and its oracle with the same weights."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minipnp.slots import Attn, Features
from minipnp.unet import ATTENTIONS, UNet
from tools.verify.compare import PER_LAYER, counterparts, difference
from tools.verify.reference import PUBLISHED, like

SD15 = Path(__file__).parent / "data" / "sd15"  # the config.json files that SD-1.5 is published with


class Pair(NamedTuple):
    ours: nn.Module
    theirs: nn.Module

    def layers(self, kind: type[nn.Module], ending: str = "") -> list[tuple[str, nn.Module, nn.Module]]:
        """(name, ours, theirs) of all layers of a kind, or of those with such a name."""
        found = counterparts(*self, PUBLISHED[type(self.ours)].rules)
        found = [(name, a, b) for name, a, _, b in found if isinstance(a, kind) and name.endswith(ending)]
        assert found, f"there is no {kind.__name__} {ending}"
        return found


def pair(build: type[nn.Module], config, settings: dict | None = None) -> Pair:
    """settings: the oracle's, in config.json's terms; by default those that our configuration says."""
    with torch.device("meta"):
        ours = build(config)
    randomise(ours)
    return Pair(ours, like(ours, settings))


def randomise(network: nn.Module) -> None:
    """Weights for a network that was built without any (on the meta device), such that every part matters.

    Each layer keeps the size of its input about. Queries and keys are twice as large, else attention would be near an
    average over all positions. Norms and biases are not at their neutral values, else their place would not matter.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, meta in network.state_dict().items():
        w = weights[name] = torch.empty(meta.shape)
        if w.dim() > 1:
            size = math.sqrt(3 / w[0].numel()) * (2 if name.endswith((".q.weight", ".k.weight")) else 1)
            w.uniform_(-size, size, generator=generator)
        elif name.endswith("weight"):
            w.uniform_(0.5, 1.5, generator=generator)
        else:
            w.uniform_(-0.3, 0.3, generator=generator)
    network.load_state_dict(weights, strict=True, assign=True)
    network.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def published(folder: str) -> dict:
    return json.loads((SD15 / folder / "config.json").read_text())


def same(layer: str, a: Tensor, b: Tensor, tolerance: float = PER_LAYER) -> None:
    found = difference(layer, "", a, b)
    assert found.within(tolerance), str(found)


def effects(unet: UNet, x: Tensor, context: Tensor) -> dict[str, float]:
    """By how much (relative) ε changes with the time, with the text, and where attention is a plain average."""
    average = Attn(edit=lambda A: torch.full_like(A, 1 / A.shape[-1]))
    plain = unet(x, 501, context)
    changed = {
        "time": unet(x, 1, context),
        "text": unet(x, 501, context.flip(2)),
        "self-attention": unet(x, 501, context, Features(A=dict.fromkeys(ATTENTIONS, average))),
        "cross-attention": unet(x, 501, context, Features(M=dict.fromkeys(ATTENTIONS, average))),
    }
    return {what: ((e - plain).norm() / plain.norm()).item() for what, e in changed.items()}
