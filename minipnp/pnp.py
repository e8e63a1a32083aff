"""Plug-and-Play Diffusion Features: Algorithm 1 of the paper.

The guidance image's denoising gives, at every step, the features f of decoder layer 4 and the self-attention A of
decoder layers 4 to 11. They take the place of the translation's own: f while t > τ_f, A while t > τ_A (tau_f, tau_A:
the shares of the steps before that). A is overridden by its queries and keys: the values stay the translation's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import guided, pairs, step
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.options import LAYERS, SEED, SHARE, SWITCH, Stepped, choice, option, scale_option
from minipnp.slots import Features, Layer, Tap, decoder
from minipnp.unet import ATTENTIONS, TABLE, UNet

ALPHA_SCHEDULES: dict[str, Callable[[float, float], float]] = {  # α and the share of the steps so far → α of a step
    "constant": lambda alpha, done: alpha,
    "linear": lambda alpha, done: alpha * (1 - done),
    "exp": lambda alpha, done: alpha * math.exp(-6 * done),
}


@dataclass(frozen=True)
class PnP(Stepped):
    """The settings of an edit. The defaults are those of pnp-diffusers.

    Shares of the steps count from the noisiest. alpha: 1 weighs only ∅, 0 only P_n. alpha_schedule: α stays
    ("constant") or falls, to 0 ("linear") or to α/e⁶ ("exp"). random_start is drawn by the caller (pipeline.py).
    """

    tau_f: float = option(0.8, "share of the steps in which features f are injected", SHARE)
    tau_A: float = option(0.5, "share of the steps in which self-attention A is injected", SHARE)
    scale: float = scale_option(7.5)
    alpha: float = option(0.0, "weight α of the empty against the negative prompt, Eq. (6)", SHARE)
    alpha_schedule: str = option("constant", "how α changes over the steps", choice(*ALPHA_SCHEDULES))
    inclusive: bool = option(False, "inject in one step more each, as plug-and-play counts", SWITCH)
    f_layers: tuple[Layer, ...] = option(decoder(4), "decoder layers whose f is injected", LAYERS)
    A_layers: tuple[Layer, ...] = option(decoder(*range(4, 12)), "decoder layers whose A is injected", LAYERS)
    random_start: int | None = option(None, "ablation: start from noise of this seed, not from the guidance's", SEED)

    def __post_init__(self):
        super().__post_init__()
        if bare := {*self.A_layers} - {*ATTENTIONS}:
            raise InputError(f"A_layers: no self-attention in {', '.join(map(str, sorted(bare)))}; give from 3 to 11")
        if bare := {layer for layer in self.f_layers if "R" not in TABLE[layer].what}:
            raise InputError(f"f_layers: no ResBlock in {', '.join(map(str, sorted(bare)))}; give decoder layers")

    def injected_steps(self, tau: float) -> int:
        """How many steps inject. A share like 0.58 of 50 is 29 steps, though 50 · 0.58 is 28.999… in floating point."""
        n = math.floor(self.steps * tau + 1e-9)
        return min(n + 1, self.steps) if self.inclusive and tau > 0 else n

    def tap(self, i: int) -> Tap:
        """What step i takes from the guidance."""
        f_layers = self.f_layers if i < self.injected_steps(self.tau_f) else ()  # if t > τ_f then f*_t ← f_t else ∅
        A_layers = self.A_layers if i < self.injected_steps(self.tau_A) else ()  # if t > τ_A then A*_t ← A_t else ∅
        return Tap(f=f_layers, q=A_layers, k=A_layers)

    def taps(self) -> dict[int, Tap]:
        """The same by level, for the steps that take something: what is worth keeping while the guidance is made."""
        return {t: self.tap(i) for i, t in enumerate(self.levels) if self.tap(i).last is not None}

    def alphas(self) -> list[float]:
        """α of Eq. (6) for each step."""
        schedule = ALPHA_SCHEDULES[self.alpha_schedule]
        return [schedule(self.alpha, i / max(self.steps - 1, 1)) for i in range(self.steps)]


@torch.no_grad()
def plug_and_play(
    unet: UNet,
    G: Guidance,
    texts: list[Tensor],
    null: Tensor,
    negative: Tensor | None = None,
    s: PnP = PnP(),
    x_T: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Algorithm 1 for each of the target `texts` [1, 77, width], which share the guidance's passes.

    G: made for the levels of s. null, negative: embeddings of the empty and of the negative prompt. x_T: another start
    than G's. Yields (level, latents [number of texts, 4, h, w]) after each step; the last ones are x*_0.
    """
    alphas = s.alphas()
    x = [G.x_T if x_T is None else x_T for _ in texts]  # x*_T ← x^G_T
    for i, (t, t_prev) in enumerate(pairs(G.levels(s))):
        injected = guidance_features(unet, G, i, t, s)
        for j, P in enumerate(texts):
            # z*_{t−1} ← ε̂_θ(x*_t, P, t; f*_t, {A*^l_t}), Eq. (3) and (4)
            z = guided(unet, x[j], t, P, null, s.scale, negative, alphas[i], injected)
            x[j] = step(x[j], z, t, t_prev)  # x*_{t−1} ← DDIM-samp(x*_t, z*_{t−1})
        yield t_prev, torch.cat(x)


def guidance_features(unet: UNet, G: Guidance, i: int, t: int, s: PnP) -> Features:
    """f*_t, {A*^l_t}: what step i, at t, injects."""
    wanted = s.tap(i)
    if wanted.last is None:
        return Features()
    if t in G.features and (kept := G.features[t].only(wanted)) is not None:
        return kept  # a pass of the inversion, at x^G_t or near it
    # z^G_{t−1}, f_t, {A^l_t} ← ε_θ(x^G_t, ∅, t). x^G_{t−1} is known already, so z^G_{t−1} is not computed.
    return unet.tap(G.latents[t], t, G.texts, wanted, stop=True)[1]
