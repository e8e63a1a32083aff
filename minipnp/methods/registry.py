"""The list of the editing methods, and the one way to run any of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minipnp.errors import InputError
from minipnp.guidance import Progress, silent
from minipnp.methods import (
    ddim_swap,
    masactrl,
    masked_pnp,
    p2p,
    pix2pix_zero,
    plug_and_play,
    sdedit,
    skip_inject,
)
from minipnp.methods.method import Method
from minipnp.methods.original import Original
from minipnp.options import Options

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        plug_and_play.METHOD,
        sdedit.METHOD,
        ddim_swap.METHOD,
        p2p.METHOD,
        pix2pix_zero.METHOD,
        masactrl.METHOD,
        masked_pnp.METHOD,
        skip_inject.METHOD,
    )
}


def method_of(s: Options) -> Method:
    """The method whose settings these are. InputError: no method has settings of this class."""
    for method in METHODS.values():
        if type(s) is method.settings:
            return method
    known = ", ".join(method.settings.__name__ for method in METHODS.values())
    raise InputError(f"{type(s).__name__}: not the settings of a method; give {known}")


def check_source(method: Method, s: Options, source: str) -> None:
    """Raises InputError where the method needs a text for the original, and there is none."""
    if not source and method.needs_source(s):
        raise InputError(f"{method.name} needs a text for what is edited: give --source{method.or_else}")


@torch.no_grad()
def edit(
    o: Original, prompts: str | Sequence[str], s: Options, negative: str | None = None, progress: Progress = silent
) -> Tensor:
    """Edits the original by the method whose settings are given: a picture for each prompt.

    → [n, 3, H, W], about [−1, 1], float32 on the CPU. Raises InputError for settings or words that cannot be.
    """
    method = method_of(s)
    check_source(method, s, o.source)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise InputError("no prompt: say what to make of the original")
    if method.together is not None:
        runs = [method.together(o, prompts, negative, s)]
    else:
        runs = (method.run(o, prompt, negative, s) for prompt in prompts)
    pictures = []
    for run in runs:
        *_, (_, x_0) = progress(run, s.steps, "translation")
        pictures.append(o.sd.decode(x_0))
    return torch.cat(pictures)
