"""How the networks are laid out for the machine they run on. Nothing here changes what they compute, but for roundings.

Savings of the method itself, such as passes that stop early, are part of the method's own code.
"""

import torch
from torch import nn

from minipnp.layers import ResBlock, Transformer
from minipnp.machine.shared_softmax import share_softmax
from minipnp.machine.upsampling import fold


def suit(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as this kind of device has it fastest, where that was measured (docs/performance.md)."""
    share_softmax(network)
    if device.type == "cpu":
        fold(network)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # the order in which tensor cores take convolutions
    return network


def compile_blocks(network: nn.Module, **options) -> None:
    """torch.compile of each ResBlock and transformer, for the shapes that come: minutes, at the first steps.

    Blocks, not the whole network: the slots stay plain Python between them, and equal blocks share one compilation.
    Without CUDA graphs: a graph's next run overwrites what the last one gave, and features are kept.
    """
    limits = torch._dynamo.config  # of shapes that are compiled; each resolution, width and batch is one
    limits.recompile_limit = limits.accumulated_recompile_limit = 1024
    for module in network.modules():
        if isinstance(module, ResBlock | Transformer):
            module.compile(dynamic=False, **options)
