"""The savings, each as a way to do without it. Everything else stays the code that is used.

After them come the other way about: savings that minipnp does not have, put in.
"""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import torch

from minipnp import pnp
from minipnp.layers import Attention, ResBlock
from minipnp.machine.shared_softmax import share_softmax
from minipnp.machine.upsampling import FoldedUpsample, fold, unfold
from minipnp.slots import Attn, Features
from minipnp.unet import ATTENTIONS, UNet
from tools.bench.case import Case


@contextlib.contextmanager
def source_pass_in_every_step(case: Case) -> Iterator[None]:
    real = pnp.guidance_features

    def features(unet, G, i, t, s):
        if s.tap(i).last is None:
            unet(G.latents[t], t, G.texts)
        return real(unet, G, i, t, s)

    with patch.object(pnp, "guidance_features", features):
        yield


@contextlib.contextmanager
def source_pass_to_its_end(case: Case) -> Iterator[None]:
    real = UNet.tap
    with patch.object(
        UNet, "tap", lambda unet, x, t, c, tap, inject=None, stop=False: real(unet, x, t, c, tap, inject)
    ):
        yield


@contextlib.contextmanager
def softmax_in_each_branch(case: Case) -> Iterator[None]:
    share_softmax(case.unet, shared=False)
    yield
    share_softmax(case.unet)


@contextlib.contextmanager
def branches_apart_from_the_start(case: Case) -> Iterator[None]:
    real = UNet.forward

    def forward(unet, x, t, context, inject=None):
        return real(unet, x.repeat(len(context) // len(x), 1, 1, 1), t, context, inject)

    with patch.object(UNet, "forward", forward):
        yield


@contextlib.contextmanager
def q_and_k_computed_where_they_are_injected(case: Case) -> Iterator[None]:
    real = Attention.forward

    def forward(attention, x, context=None, inject=None, *more):
        if inject is not None and inject.q is not None:
            attention.q(x)
        if inject is not None and inject.k is not None:
            attention.k(x if context is None else context)
        return real(attention, x, context, inject, *more)

    with patch.object(Attention, "forward", forward):
        yield


@contextlib.contextmanager
def f_computed_where_it_is_injected(case: Case) -> Iterator[None]:
    real = ResBlock.forward

    def forward(block, x, time=None, inject=None):
        if inject is not None:
            block.f(x, time)
        return real(block, x, time, inject)

    with patch.object(ResBlock, "forward", forward):
        yield


@contextlib.contextmanager
def upsampling_as_it_is_written(case: Case) -> Iterator[None]:
    unfold(case.unet)
    yield
    fold(case.unet)


UPSAMPLING = "upsampling folded"
OFF = {  # the saving: how it is done without
    "no source pass past the thresholds": source_pass_in_every_step,
    "source pass stops early": source_pass_to_its_end,
    "injected q, k not computed": q_and_k_computed_where_they_are_injected,
    "one softmax for all branches": softmax_in_each_branch,
    "branches share the start": branches_apart_from_the_start,
    "f skipped where injected": f_computed_where_it_is_injected,
    UPSAMPLING: upsampling_as_it_is_written,
}


# The other way about: savings that minipnp does not have, put in.


@contextlib.contextmanager
def upsampling_folded(case: Case) -> Iterator[None]:
    fold(case.unet)
    yield
    unfold(case.unet)


def text_keys_and_values(case: Case) -> dict[str, Attn]:
    """Of both branches, in the order of `ddim.guided`, by layer: what the slots of cross-attention take."""
    text = torch.cat([case.text, case.null]).to(case.unet.conv_out.weight.dtype)
    by_layer = {row.layer: row.transformer.cross_attn for row in case.unet.rows if row.layer in ATTENTIONS}
    return {layer: Attn(k=a.split(a.k(text)), v=a.split(a.v(text))) for layer, a in by_layer.items()}


@contextlib.contextmanager
def with_text(M: dict[str, Attn]) -> Iterator[None]:
    real = UNet.forward

    def forward(unet, x, t, context, inject=None):
        return real(unet, x, t, context, (inject or Features())._replace(M=M))

    with patch.object(UNet, "forward", forward):
        yield


def is_folded(network: torch.nn.Module) -> bool:
    return any(isinstance(module, FoldedUpsample) for module in network.modules())
