"""SkipInject (Schaerf et al. 2025, arXiv 2501.14524): the skip connections of the third encoder block carry the layout.

At every step the guidance image's denoising gives what the encoder hands on to decoder layers 4 and 5, and it takes the
place of the translation's own. The rest of the decoder's stream, and with it the style, stays the translation's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import guided, pairs, step
from minipnp.guidance import Guidance
from minipnp.methods.align import steps_in
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.options import LAYERS, SHARE, Stepped, option, scale_option
from minipnp.slots import Features, Layer, Tap, decoder
from minipnp.unet import UNet


@dataclass(frozen=True)
class SkipInject(Stepped):
    """The settings of an edit. Layer i of the decoder is given the output of encoder row 11 − i."""

    tau_s: float = option(0.8, "share of the steps in which skip connections are injected", SHARE)
    s_layers: tuple[Layer, ...] = option(
        decoder(4, 5), "decoder layers that take the original's skip connection", LAYERS
    )
    scale: float = scale_option(7.5)


@torch.no_grad()
def skip_inject(
    unet: UNet, G: Guidance, text: Tensor, null: Tensor, s: SkipInject = SkipInject()
) -> Iterator[tuple[int, Tensor]]:
    """text, null: embeddings [1, 77, width] of the prompt, and of the empty or of a negative prompt.

    Yields (level, latent [1, 4, h, w]) after each step.
    """
    injected_steps = steps_in(s.tau_s, s.steps)
    x = G.x_T
    for i, (t, t_prev) in enumerate(pairs(G.levels(s))):
        injected = Features()
        if i in injected_steps:
            _, injected = unet.tap(G.latents[t], t, G.texts, Tap(s=s.s_layers), stop=True)
        x = step(x, guided(unet, x, t, text, null, s.scale, inject=injected), t, t_prev)
        yield t_prev, x


def _edit(o: Original, prompt: str, negative: str | None, s: SkipInject) -> Steps:
    return skip_inject(o.unet, o.guidance(s), o.sd.embed(prompt), o.against(negative), s)


METHOD = Method(
    "skip-inject",
    "SkipInject: the source's skip connections into decoder layers 4 and 5",
    SkipInject,
    _edit,
    guidance=lambda o, s: o.guidance(s),
)
