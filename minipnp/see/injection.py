"""The paper's Fig. 5 at a glance: one translation under several choices of what is injected."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minipnp.ddim import guided, pairs, step
from minipnp.guidance import Guidance
from minipnp.options import text_of_layers
from minipnp.pnp import PnP, guidance_features
from minipnp.slots import Layer, decoder
from minipnp.unet import UNet

ALL_A = decoder(4, 5, 6, 7, 8, 9, 10, 11)


@dataclass(frozen=True)
class Variant:
    """f, A: the layers whose features are injected. random: it starts from noise and not from the guidance's x_T."""

    label: str
    f: tuple[Layer, ...] = ()
    A: tuple[Layer, ...] = ()
    random: bool = False


def fig_5(s: PnP) -> tuple[Variant, ...]:
    """The figure's rows, with f of the layers that the settings name in the place of the paper's layer 4."""
    f = text_of_layers(s.f_layers)
    return (
        Variant(f"f of layer {f}", s.f_layers),
        Variant("f of layers 4-8", decoder(4, 5, 6, 7, 8)),
        Variant("f of layers 4-11", ALL_A),
        Variant("neither f nor A"),
        Variant("A of layers 4-11", (), ALL_A),
        Variant(f"f of {f}, A of 4-11: Plug-and-Play", s.f_layers, ALL_A),
        Variant("the same from a random x_T", s.f_layers, ALL_A, random=True),
    )


@torch.no_grad()
def injections(
    unet: UNet,
    G: Guidance,
    text: Tensor,
    null: Tensor,
    negative: Tensor | None,
    s: PnP,
    noise: Tensor,
    variants: Sequence[Variant],
) -> Iterator[tuple[int, Tensor]]:
    """Algorithm 1 for each of the variants, which share the guidance's passes: one a step, for all the layers of all.

    As `plug_and_play`, with the variants in the place of several texts. The layers are theirs, all else is that of s.
    Yields (level, latents [number of variants, 4, h, w]) after each step.
    """
    union = every(s, variants)
    alphas = s.alphas()
    x = [noise if v.random else G.x_T for v in variants]
    for i, (t, t_prev) in enumerate(pairs(G.levels(s))):
        source = guidance_features(unet, G, i, t, union)
        for j, v in enumerate(variants):
            injected = source.only(replace(s, f_layers=v.f, A_layers=v.A).tap(i))
            z = guided(unet, x[j], t, text, null, s.scale, negative, alphas[i], injected)
            x[j] = step(x[j], z, t, t_prev)
        yield t_prev, torch.cat(x)


def every(s: PnP, variants: Sequence[Variant]) -> PnP:
    """The settings with all layers of all variants: what is worth keeping of the guidance."""
    f = {layer for v in variants for layer in v.f}
    A = {layer for v in variants for layer in v.A}
    return replace(s, f_layers=tuple(sorted(f)), A_layers=tuple(sorted(A)))
