"""How the networks are laid out for the machine they run on. Nothing here changes what they compute, but for roundings.

Savings of the method itself, such as passes that stop early, are part of the method's own code.
"""

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn

from minipnp.errors import InputError
from minipnp.layers import ResBlock, Transformer
from minipnp.machine.mps_attention import attend_for_mps
from minipnp.machine.shared_softmax import share_softmax
from minipnp.machine.upsampling import fold


def suit(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as this kind of device has it fastest, where that was measured (docs/performance.md).

    On MPS, which was not at hand, in the form that does not end the process.
    """
    if device.type == "mps":
        attend_for_mps(network)
    else:
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


def check_compiler(device: torch.device) -> None:
    """Raises InputError where torch.compile cannot work, or is of no use."""
    if device.type == "cpu":
        raise InputError("--compile takes minutes on a CPU and makes nothing faster there: leave it out")
    if device.type == "cuda" and find_spec("triton") is None:
        raise InputError("--compile needs Triton, which is not installed: `pip install triton`, or leave it out")
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    if os.name == "posix" and not any(shutil.which(name) for name in compilers if name):
        raise InputError("--compile needs a C compiler, and there is none (gcc, clang): install one, or leave it out")


def exact_float32(device: torch.device) -> None:
    """Makes float32 on CUDA mean float32, in this process.

    There PyTorch's convolutions are TF32 by default: of each factor they read 10 bits after the point, not 23.
    """
    # The switch is the whole process's. One that is turned around each pass would not hold for gradients, which are
    # taken after it. So it is turned once, but only where float32 on CUDA is asked for, which is never a default.
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
