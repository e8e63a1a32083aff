"""The ways to make the edit, by name: each, called, gives the latents after each step."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import torch

from minipnp.machine.kept import flat
from minipnp.machine.speed import compile_blocks, suit
from minipnp.pnp import plug_and_play
from minipnp.slots import Features
from minipnp.unet import UNet
from tools.bench.authors import Authors
from tools.bench.case import COUNTS, SHORT, Case
from tools.bench.savings import OFF, UPSAMPLING, is_folded, text_keys_and_values, upsampling_folded, with_text

OWN, WITHOUT, ALL, KEPT = (
    "the authors' way, on diffusers",
    "minipnp without savings",
    "minipnp",
    "minipnp, features kept",
)
KEPT_COMPILED, OWN_COMPILED = "minipnp, features kept, compiled", "the authors' way, compiled"
TEXT_ONCE, FOLDED = "text keys and values once (left out)", "upsampling folded (left out on this device)"
SAVINGS = (  # (the saving, the way without it, the way with it), of which a device has those that mean something there
    *((name, name, ALL) for name in OFF),
    ("features kept", ALL, KEPT),
    ("all of these", WITHOUT, KEPT),
    (TEXT_ONCE, KEPT, TEXT_ONCE),
    (FOLDED, ALL, FOLDED),
)


def ways(case: Case, theirs: dict[str, Authors], compiled: UNet | None = None) -> dict[str, Callable]:
    """theirs: by the names OWN and OWN_COMPILED. Each way, called, is an iterator of latents."""

    def ours(unet=case.unet, G=case.G, off=()):
        with contextlib.ExitStack() as stack:
            for without in off:
                stack.enter_context(without)
            for _, x in plug_and_play(unet, G, [case.text], case.null, s=SHORT):
                yield x

    G = replace(case.G, features=kept_features(case))
    folds = is_folded(case.unet)
    off, M = {name: without for name, without in OFF.items() if folds or name != UPSAMPLING}, text_keys_and_values(case)
    made = {
        name: lambda own=own: (x for _, x in own.edit(case.G, case.text, case.null, SHORT))
        for name, own in theirs.items()
    }
    made |= {
        WITHOUT: lambda: ours(off=[without(case) for without in off.values()]),
        ALL: ours,
        KEPT: lambda: ours(G=G),
        **{name: lambda without=without: ours(off=[without(case)]) for name, without in off.items()},
        TEXT_ONCE: lambda: ours(G=G, off=[with_text(M)]),
    }
    if not folds:
        made[FOLDED] = lambda: ours(off=[upsampling_folded(case)])
    if compiled is not None:
        made[KEPT_COMPILED] = lambda: ours(compiled, G)
    return made


def kept_features(case: Case) -> dict[int, Features]:
    return {t: case.unet.tap(case.G.latents[t], t, case.null, tap)[1] for t, tap in SHORT.taps().items()}


def size_of_kept(case: Case) -> float:
    """GB that an edit of 50 steps keeps. A step of f and A keeps as much as any other of its kind."""
    each = [sum(x.nbytes for x in flat(features).values()) for features in kept_features(case).values()]
    return sum(n * size for n, size in zip(COUNTS[:-1], each, strict=True)) / 1e9  # the last kind keeps nothing


def compiled_copy(unet: UNet, backend: str) -> UNet:
    """A copy of the modules; the weights are shared."""
    with torch.device("meta"):
        copy = UNet(unet.config)
    copy.load_state_dict(unet.state_dict(), assign=True)
    suit(copy.eval().requires_grad_(False), unet.conv_out.weight.device)
    compile_blocks(copy, backend=backend)
    return copy
