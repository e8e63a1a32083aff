"""Prompt-to-Prompt (Hertz et al. 2022): edit the words by editing the cross-attention maps; their Algorithm 1.

A map M says which cells attend to which token, hence where each word is drawn: the target, from the same x_T, draws its
words where the source drew theirs. The source's denoising x_t is a `Guidance`. Generated with the source's text and the
same guidance scale, it is the paper's own. Inverted from a picture (best with the source's text), it is that picture at
every level; with the source's text as `null` too, guidance leads only where the target's words differ, not elsewhere.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.ddim import CLEAN, pairs, step, timesteps
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.methods.align import Alignment, Share, equalizer, steps_in, windows
from minipnp.methods.maps import layers_at, layers_up_to, word_map
from minipnp.slots import Attn, Features, Layer, Tap
from minipnp.unet import ATTENTIONS, UNet

Positions = Mapping[str, Collection[int]]  # words and their positions in a prompt; several count as one


@dataclass(frozen=True)
class P2P:
    """The settings of an edit. The defaults are the authors'.

    cross_replace, self_replace: shares of the steps in which cross- and self-attention come from the source.
    self_side: self-attention does so where the cells' side is at most this share of the latent's. scale: guidance.
    """

    steps: int = 50
    cross_replace: Share = 0.8
    self_replace: Share = 0.4
    self_side: float = 1 / 4
    scale: float = 7.5

    def __post_init__(self):
        timesteps(self.steps)
        for share in (self.cross_replace, self.self_replace):
            steps_in(share, self.steps)
        if not 1 / 8 <= self.self_side <= 1:
            raise InputError(f"self_side = {self.self_side}: give a share of the latent's side, 1, 1/2, 1/4 or 1/8")
        if not math.isfinite(self.scale):
            raise InputError(f"guidance scale {self.scale}: give a number")


def edited_map(M: Tensor, M_star: Tensor, alignment: Alignment, weights: Tensor, c: Tensor) -> Tensor:
    """Edit(M_t, M*_t, t): the map that the target uses in the place of its own M*, all [B, heads, cells, 77].

    weights, c: [77], the equalizer, and 1 where a word is edited in this step. The result is not renormalised.
    """
    R, taken, weights, c = (x.to(M_star) for x in (*alignment, weights, c))  # on its device they are already
    M_hat = weights * (taken * (M @ R) + (1 - taken) * M_star)  # word swap, new phrase; re-weighting
    return c * M_hat + (1 - c) * M_star


@dataclass(frozen=True)
class LocalBlend:
    """Where the target may differ from the source: where one of them attends to `words`, and neither to `substruct`.

    Both hold the words of the source's prompt and of the target's; one of the two may be empty. thresholds: of words
    and of substruct, as shares of a map's maximum. start: the share of the steps that are not blended. side: that of
    the cells whose maps are read, as a share of the latent's.
    """

    words: tuple[Positions, Positions]
    substruct: tuple[Positions, Positions] = ({}, {})
    thresholds: tuple[float, float] = (0.3, 0.3)
    start: float = 0.2
    side: float = 1 / 4

    def __post_init__(self):
        steps_in(self.start, 1)
        if not layers_at(self.side):
            raise InputError(f"local blend at side {self.side}: give a share of the latent's side, 1, 1/2, 1/4 or 1/8")
        if not any(self.words):
            raise InputError("local blend needs a word of the source or of the target")
        if not all(0 <= threshold < 1 for threshold in self.thresholds):
            raise InputError(f"local blend's thresholds {self.thresholds}: give shares from 0 to less than 1")

    def maps(self, M: Mapping[Layer, Attn], M_star: Mapping[Layer, Attn], size: Sequence[int]) -> Tensor:
        """How much cells attend to words and substruct, in source and target: [4, 1, 1, h, w]. size: the latent's."""
        cells = [int(side * self.side) for side in size]
        both = [{k: m[k] for k in layers_at(self.side)} for m in (M, M_star)]
        groups = zip(2 * both, (*self.words, *self.substruct), strict=True)
        return torch.stack([word_map(m, sum(map(list, words.values()), []), *cells) for m, words in groups])

    def mask(self, sums: Tensor, size: Sequence[int]) -> Tensor:
        """B(M̄_t, w) ∪ B(M̄*_t, w*), less that of substruct: bool [1, 1, *size]. sums: `maps` of the steps so far."""
        inside = self._union(self.words, sums[:2], size, self.thresholds[0], pool=True)
        return inside & ~self._union(self.substruct, sums[2:], size, self.thresholds[1], pool=False)

    @staticmethod
    def _union(words: Sequence[Positions], sums: Tensor, size: Sequence[int], threshold: float, pool: bool) -> Tensor:
        union = torch.zeros(1, 1, *size, dtype=torch.bool, device=sums.device)
        for prompt, named, m in zip(("source", "target"), words, sums, strict=True):
            if not named:
                continue
            if not m.max() > 0:
                raise InputError(f"local blend: nothing attends to {' '.join(named)!r} in the {prompt} prompt")
            if pool:
                m = F.max_pool2d(m, kernel_size=3, stride=1, padding=1)
            m = F.interpolate(m, tuple(size), mode="nearest")
            union |= m / m.max() > threshold
        return union


@torch.no_grad()
def prompt_to_prompt(
    unet: UNet, G: Guidance, source: Tensor, target: Tensor, null: Tensor, alignment: Alignment, s: P2P = P2P(),
    weights: Mapping[int, float] | None = None, shares: Mapping[int, Share] | None = None,
    blend: LocalBlend | None = None,
) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """Algorithm 1: x*_0 with the text `target`, laid out as G with the text `source`.

    source, target, null: embeddings [1, 77, width]; null: of the empty prompt, or what the target is led away from
    instead. alignment: of the prompts' tokens (align.py). By position in the target's row, weights: c of re-weighting;
    shares: cross_replace of single words. Yields (level, latents [1, 4, h, w]) after each step.
    """
    device, in_step = G.x_T.device, windows(s.steps, s.cross_replace, shares or {})
    edited = [c.to(device) if c.any() else None for c in in_step]  # None: no word is, in this step
    alignment, factors = Alignment(*(x.to(device) for x in alignment)), equalizer(weights or {}).to(device)
    self_steps = steps_in(s.self_replace, s.steps)
    blended = layers_at(blend.side) if blend else ()
    x_src = {**G.latents, CLEAN: G.x_0}
    x, sums = G.x_T, 0  # x*_T ← x_T
    for i, (t, t_prev) in enumerate(pairs(G.levels(s.steps))):
        cross = ATTENTIONS if edited[i] is not None else ()
        own = layers_up_to(s.self_side) if i in self_steps else ()
        wanted, A, M = Tap(q=own, k=own, M=cross or blended), {}, {}
        if wanted.last is not None:
            # z_{t−1}, M_t ← DM(x_t, P, t). x_{t−1} is known already, so z_{t−1} is not computed.
            _, (_, A, M) = unet.tap(x_src[t], t, source, wanted, stop=True)
        # z*_{t−1} ← DM(x*_t, P*, t){M ← M̂_t}, M̂_t ← Edit(M_t, M*_t, t): each layer's M* is known when it is reached.
        # The queries and keys of the source give its self-attention. The unconditional branch stays as it is.
        to_target = dict(alignment=alignment, weights=factors, c=edited[i])
        M_hat = {layer: Attn(edit=partial(edited_map, M[layer].map, **to_target)) for layer in cross}
        e, tapped = unet.tap(x, t, target, Tap(M=blended), Features(A=A, M=M_hat))
        e = s.scale * e + (1 - s.scale) * unet(x, t, null)
        x = step(x, e, t, t_prev)
        if blend:
            sums = sums + blend.maps(M, tapped.M, x.shape[2:])  # M̄
            if i >= len(steps_in(blend.start, s.steps)):
                # α ← B(M̄_t, w) ∪ B(M̄*_t, w*);  x*_{t−1} ← (1 − α)·x_{t−1} + α·x*_{t−1}
                x = torch.where(blend.mask(sums, x.shape[2:]), x, x_src[t_prev])
        yield t_prev, x
