"""Plug-and-Play Diffusion Features: Algorithm 1 of the paper.

The guidance image's denoising gives, at every step, the features f of decoder layer 4 and the self-attention A of
decoder layers 4 to 11. They take the place of the translation's own: f while t > τ_f, A while t > τ_A (tau_f, tau_A:
the shares of the steps before that). A is overridden by its queries and keys: the values stay the translation's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minipnp.ddim import guided, pairs, step, timesteps
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.slots import Features, Layer, Tap, decoder
from minipnp.unet import ATTENTIONS, TABLE, UNet


@dataclass(frozen=True)
class PnP:
    """The settings of an edit in 1 to 999 steps. The defaults are those of pnp-diffusers.

    tau_f, tau_A: shares of the steps, 0 to 1, counted from the noisiest, in which f of the ResBlocks in f_layers and A
    of A_layers are injected; inclusive: one step more each, as plug-and-play counts. scale: w of Eq. (5). alpha: α of
    Eq. (6), 1: only ∅, 0: only P_n; alpha_schedule: it stays ("constant") or falls, to 0 ("linear") or α/e⁶ ("exp").
    """

    steps: int = 50
    tau_f: float = 0.8
    tau_A: float = 0.5
    scale: float = 7.5
    alpha: float = 0.0
    alpha_schedule: str = "constant"
    inclusive: bool = False
    f_layers: tuple[Layer, ...] = decoder(4)
    A_layers: tuple[Layer, ...] = decoder(4, 5, 6, 7, 8, 9, 10, 11)

    def __post_init__(self):
        timesteps(self.steps)
        for name in ("tau_f", "tau_A", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)}: give a share from 0 to 1")
        if bare := {*self.A_layers} - {*ATTENTIONS} | {at for at in self.f_layers if "R" not in TABLE[at].what}:
            raise InputError(f"no self-attention, or no f, to inject in {', '.join(map(str, sorted(bare)))}")
        if not math.isfinite(self.scale):
            raise InputError(f"guidance scale {self.scale}: give a number")
        self.alphas()

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
        return {t: self.tap(i) for i, t in enumerate(timesteps(self.steps)) if self.tap(i).last is not None}

    def alphas(self) -> list[float]:
        """α of Eq. (6) for each step."""
        n = self.steps
        ramp = [i / max(n - 1, 1) for i in range(n)]  # 0 … 1
        schedules = {
            "constant": [self.alpha for _ in ramp],
            "linear": [self.alpha * (1 - r) for r in ramp],
            "exp": [self.alpha * math.exp(-6 * r) for r in ramp],
        }
        if self.alpha_schedule not in schedules:
            raise InputError(f"alpha schedule {self.alpha_schedule!r}: give one of {', '.join(schedules)}")
        return schedules[self.alpha_schedule]


@torch.no_grad()
def plug_and_play(
    unet: UNet, G: Guidance, texts: list[Tensor], null: Tensor, negative: Tensor | None = None, s: PnP = PnP(),
    x_T: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """Algorithm 1 for each of the target `texts` [1, 77, width], which share the guidance's passes.

    G: made for s.steps. null, negative: embeddings of the empty and of the negative prompt. x_T: another start than
    G's. Yields (level, latents [number of texts, 4, h, w]) after each step; the last ones are x*_0.
    """
    alphas = s.alphas()
    x = [G.x_T if x_T is None else x_T for _ in texts]  # x*_T ← x^G_T
    for i, (t, t_prev) in enumerate(pairs(G.levels(s.steps))):
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
