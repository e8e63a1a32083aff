"""What the benchmark measures: the settings of its edit, the kinds of its steps, and the networks that it runs on.

The edit that is run has three steps, one of each kind. COUNTS says how many steps of each kind an edit of 50 has.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minipnp.config import UNetConfig
from minipnp.guidance import Guidance
from minipnp.machine.speed import suit
from minipnp.pnp import PnP
from minipnp.unet import UNet

EDIT = PnP()
SHORT = replace(EDIT, steps=3, tau_f=2 / 3, tau_A=1 / 3)  # a step of each kind
KINDS = ("f and A", "f", "none")
_F, _A = EDIT.injected_steps(EDIT.tau_f), EDIT.injected_steps(EDIT.tau_A)
COUNTS = (_A, _F - _A, EDIT.steps - _F)  # of an edit's steps
SMALL = UNetConfig(channels=(32, 64, 128, 128), heads=4, context=64, groups=16)


@dataclass(frozen=True)
class Case:
    unet: UNet
    G: Guidance
    text: Tensor
    null: Tensor


def random_unet(config: UNetConfig, device: torch.device, dtype: torch.dtype) -> UNet:
    """PyTorch's own random beginnings, of which a deep stack keeps its values in range."""
    unet = UNet(config).eval().requires_grad_(False).to(device, dtype)
    return suit(unet, device)
