"""Prompt-to-Prompt (Hertz et al. 2022): edit the words by editing the cross-attention maps; their Algorithm 1.

A map M says which cells attend to which token, hence where each word is drawn: the target, from the same x_T, draws its
words where the source drew theirs. The source's denoising x_t is a `Guidance`. Generated with the source's text and the
same guidance scale, it is the paper's own. Inverted from a picture (best with the source's text), it is that picture at
every level; with the source's text as `null` too, guidance leads only where the target's words differ, not elsewhere.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.ddim import CLEAN, combine, pairs, step
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.methods.align import (
    ALIGNMENTS,
    Alignment,
    Share,
    as_share,
    equalizer,
    new_phrase,
    shares_of_words,
    steps_in,
    windows,
    word_swap,
)
from minipnp.methods.maps import layers_at, layers_up_to, word_map
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.methods.words import SOURCE, pair_of, positions, words_of
from minipnp.options import (
    AMOUNTS,
    SHARE,
    SWITCH,
    WORDS,
    Form,
    Stepped,
    amount_of_text,
    choice,
    number,
    option,
    scale_option,
)
from minipnp.slots import Attn, Features, Layer, Tap
from minipnp.unet import ATTENTIONS, UNet

Positions = Mapping[str, Collection[int]]  # words and their positions in a prompt; several count as one


SPAN = Form("a share from 0 to 1, or in Python where it starts and where it ends", as_share, float)
SPANS = Form("WORD=SHARE", shares_of_words, amount_of_text, dict, "WORD=X", repeats=True)


@dataclass(frozen=True)
class P2P(Stepped):
    """The settings of an edit. The defaults are the authors'."""

    cross_replace: Share = option(0.8, "share of the steps with the source's cross-attention maps", SPAN)
    self_replace: Share = option(0.4, "share of the steps with the source's self-attention maps", SPAN)
    self_side: float | None = option(
        None,
        "largest side of the cells of those self-attentions, share of the latent's (default: the model's, for SD 1/4)",
        number(1 / 8, 1.0, "a share of the latent's side, 1, 1/2, 1/4 or 1/8"),
    )
    scale: float = scale_option(7.5)
    align: str = option("auto", "align the prompts' words one to one, or as far as they agree", choice(*ALIGNMENTS))
    weight: tuple[tuple[str, float], ...] = option((), "re-weight a word of the prompt", AMOUNTS)
    share: tuple[tuple[str, Share], ...] = option((), "cross-replace of one word of the prompt", SPANS)
    blend: tuple[str, ...] = option((), "change the picture only at this word", WORDS)
    spare: tuple[str, ...] = option((), "and not at this word", WORDS)
    blend_threshold: float = option(0.3, "share of a map's maximum from which a cell is the word's", SHARE)
    blend_start: float = option(0.2, "share of the steps that are not blended", SHARE)
    as_published: bool = option(False, "as the authors' code has it, where it differs from what is here", SWITCH)

    def __post_init__(self):
        super().__post_init__()
        if self.spare and not self.blend:
            raise InputError("--spare takes cells out of a local blend: give --blend too")
        if not self.blend_threshold < 1:
            raise InputError(f"blend_threshold = {self.blend_threshold}: give a share from 0 to less than 1")


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
        seen = (sums.flatten(1).amax(dim=1) > 0).tolist()  # here the GPU is waited for
        for prompt, named, there in zip(2 * ("source", "target"), (*self.words, *self.substruct), seen, strict=True):
            if named and not there:
                raise InputError(f"local blend: nothing attends to {' '.join(named)!r} in the {prompt} prompt")
        inside = self._union(self.words, sums[:2], size, self.thresholds[0], pool=True)
        return inside & ~self._union(self.substruct, sums[2:], size, self.thresholds[1], pool=False)

    @staticmethod
    def _union(words: Sequence[Positions], sums: Tensor, size: Sequence[int], threshold: float, pool: bool) -> Tensor:
        union = torch.zeros(1, 1, *size, dtype=torch.bool, device=sums.device)
        for named, m in zip(words, sums, strict=True):
            if not named:
                continue
            if pool:
                m = F.max_pool2d(m, kernel_size=3, stride=1, padding=1)
            m = F.interpolate(m, tuple(size), mode="nearest")
            union |= m / m.max() > threshold
        return union


class WordEdit(NamedTuple):
    """What is edited, by positions of the prompts' tokens.

    alignment: of the prompts (align.py). By position in the target's row, weights: c of re-weighting; shares:
    cross_replace of single words. blend: where the picture may change.
    """

    alignment: Alignment
    weights: Mapping[int, float] = {}
    shares: Mapping[int, Share] = {}
    blend: LocalBlend | None = None


@torch.no_grad()
def prompt_to_prompt(
    unet: UNet, G: Guidance, source: Tensor, target: Tensor, null: Tensor, words: WordEdit, s: P2P = P2P()
) -> Iterator[tuple[int, Tensor]]:
    """Algorithm 1: x*_0 with the text `target`, laid out as G with the text `source`.

    source, target, null: embeddings [1, 77, width]; null: of the empty prompt, or what the target is led away from
    instead. Yields (level, latents [1, 4, h, w]) after each step.
    """
    device = G.x_T.device
    in_step = windows(s.steps, s.cross_replace, words.shares)
    edited = [c if there else None for c, there in zip(in_step.to(device), in_step.any(dim=1).tolist(), strict=True)]
    alignment = Alignment(*(x.to(device) for x in words.alignment))
    factors = equalizer(words.weights).to(device)
    blend = words.blend
    self_steps = steps_in(s.self_replace, s.steps)
    blended = layers_at(blend.side) if blend else ()
    x_src = {**G.latents, CLEAN: G.x_0}
    # x*_T ← x_T
    x = G.x_T
    sums = 0
    for i, (t, t_prev) in enumerate(pairs(G.levels(s))):
        cross = ATTENTIONS if edited[i] is not None else ()
        own = layers_up_to(1 / 4 if s.self_side is None else s.self_side) if i in self_steps else ()
        wanted = Tap(q=own, k=own, M=cross or blended)
        A = {}
        M = {}
        if wanted.last is not None:
            # z_{t−1}, M_t ← DM(x_t, P, t). x_{t−1} is known already, so z_{t−1} is not computed.
            _, (_, A, M, _) = unet.tap(x_src[t], t, source, wanted, stop=True)
        # z*_{t−1} ← DM(x*_t, P*, t){M ← M̂_t}, M̂_t ← Edit(M_t, M*_t, t): each layer's M* is known when it is reached.
        # The queries and keys of the source give its self-attention. The unconditional branch stays as it is.
        to_target = dict(alignment=alignment, weights=factors, c=edited[i])
        M_hat = {layer: Attn(edit=partial(edited_map, M[layer].map, **to_target)) for layer in cross}
        e, tapped = unet.tap(x, t, target, Tap(M=blended), Features(A=A, M=M_hat))
        x = step(x, combine(e, unet(x, t, null), s.scale), t, t_prev)
        if blend:
            sums = sums + blend.maps(M, tapped.M, x.shape[2:])  # M̄
            if i >= len(steps_in(blend.start, s.steps)):
                # α ← B(M̄_t, w) ∪ B(M̄*_t, w*);  x*_{t−1} ← (1 − α)·x_{t−1} + α·x*_{t−1}
                x = torch.where(blend.mask(sums, x.shape[2:]), x, x_src[t_prev])
        yield t_prev, x


def words_to_edit(o: Original, prompt: str, s: P2P) -> WordEdit:
    """The settings' words as positions of their tokens. InputError: a word that is not there, or changes nothing."""
    tokenizer = o.sd.tokenizer
    alike = len(words_of(tokenizer, o.source)) == len(words_of(tokenizer, prompt))
    by_word = s.align == "swap" or (s.align == "auto" and alike)
    alignment = (word_swap if by_word else new_phrase)(tokenizer, o.source, prompt, s.as_published)

    def at(values: Iterable[tuple[str, Share]]) -> dict[int, Share]:
        return {i: value for word, value in values for i in positions(tokenizer, prompt, word)}

    def named(words: Sequence[str]) -> tuple[Positions, Positions]:
        pairs = [pair_of(word) for word in words]
        before = {word: positions(tokenizer, o.source, word, SOURCE) for word, _ in pairs}
        after = {word: positions(tokenizer, prompt, word) for _, word in pairs}
        return before, after

    shares = at(s.share)
    edited = windows(s.steps, s.cross_replace, shares).any(dim=0)
    for word, _ in s.weight:
        if not edited[positions(tokenizer, prompt, word)].any():
            raise InputError(f"--weight {word}=… changes nothing: --cross-replace or --share edits its map in no step")
    blend = None
    if s.blend:
        thresholds = (s.blend_threshold, s.blend_threshold)
        blend = LocalBlend(named(s.blend), named(s.spare), thresholds, s.blend_start, o.share)
    return WordEdit(alignment, at(s.weight), shares, blend)


def _inverted(o: Original, s: P2P) -> Guidance:
    return o.guidance(s, by_source=True)


def _edit(o: Original, prompt: str, negative: str | None, s: P2P) -> Steps:
    """An inverted picture comes back at any guidance scale only where its own text is the negative prompt too."""
    null = o.text if negative is None and not o.generated else o.against(negative)
    words = words_to_edit(o, prompt, s)
    s = replace(s, self_side=o.share if s.self_side is None else s.self_side)
    return prompt_to_prompt(o.unet, _inverted(o, s), o.text, o.sd.embed(prompt), null, words, s)


def _check(o: Original, prompt: str, s: P2P) -> None:
    words_to_edit(o, prompt, s)


METHOD = Method(
    "p2p",
    "Prompt-to-Prompt: edits cross-attention maps",
    P2P,
    _edit,
    guidance=_inverted,
    needs_source=lambda s: True,
    check=_check,
    under_both=False,
)
