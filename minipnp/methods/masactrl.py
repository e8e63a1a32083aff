"""MasaCtrl (Cao et al. 2023): mutual self-attention. The target asks with its own queries, and the source answers.

From a step S and a self-attention layer L on, the target's self-attention takes k and v from the source's pass, so that
the source's contents come in the target's layout:

    EDIT = {q, k_s, v_s} if step ≥ S and layer ≥ L else {q, k, v}                        Eq. (5)

With the object's word, objects ask objects and backgrounds ask backgrounds. M_s, M: masks from the word's
cross-attention in the source's pass and in the target's own:

    f_o = Attention(q, k_s, v_s; M_s)    f_b = Attention(q, k_s, v_s; 1 − M_s)           Eq. (6), (7)
    f̂ = f_o·M + f_b·(1 − M)                                                              Eq. (8)

For each query one of the two counts, so together they are one attention in which a query may attend to the keys that
lie on its own side.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.advice import SHARES
from minipnp.ddim import combine, pairs, step
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.methods.maps import layers_at, share, word_map
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.methods.words import word_positions
from minipnp.options import COUNT, SHARE, WORD, Stepped, option, scale_option, whole
from minipnp.slots import Attn, Features, Layer, Tap
from minipnp.unet import ATTENTIONS, UNet

# The positions of the object's word in the source's prompt, and in the target's.
WordPositions = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class MasaCtrl(Stepped):
    """The settings of an edit. mask_share: maps are read where the network works at this share of the latent's side."""

    scale: float = scale_option(7.5)
    start_step: int = option(4, "first step, from 0, that attends to the source", COUNT)
    start_layer: int = option(
        10, "first of the 16 self-attentions, from 0, that attends to the source", whole(0, len(ATTENTIONS) - 1)
    )
    threshold: float = option(0.1, "share of the range of a word's map from which a cell is the object's", SHARE)
    word: str | None = option(None, "the object: horse, or horse=cow for the source's and the prompt's", WORD)
    mask_share: float = 1 / 4

    def __post_init__(self):
        super().__post_init__()
        if self.start_step > self.steps:
            raise InputError(f"start_step = {self.start_step}: give a number from 0 to the {self.steps} steps")
        check_mask(self.threshold, self.mask_share)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return ATTENTIONS[self.start_layer :]


def check_mask(threshold: float, at: float) -> None:
    if not 0 < threshold <= 1:
        raise InputError(f"mask threshold {threshold}: give a number above 0, up to 1")
    if at not in SHARES:
        raise InputError(f"mask share {at}: give {', '.join(map(str, SHARES))}")


def cells(latent: Sequence[int], at: float) -> tuple[int, int]:
    """(height, width) of the layers that work at this share of the side of a latent of this height and width."""
    return int(latent[0] * at), int(latent[1] * at)


def normalised(word: Tensor) -> Tensor:
    """A word's map [B, 1, h, w] with values from 0 to 1 in each row; NaN in a row of equal values."""
    low = word.amin((2, 3), keepdim=True)
    high = word.amax((2, 3), keepdim=True)
    return (word - low) / (high - low)


def check_attended(word: Tensor) -> None:
    """Raises InputError for a normalised map that is NaN. It waits for the GPU, so it is called once in a step."""
    if not word.isfinite().all():
        raise InputError("no part of the picture attends to the word more than another: give another word, or a mask")


def word_mask(word: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """A word's normalised map [B, 1, h, w] → [B, 1, *size], True where the object is: nearest, ≥ threshold."""
    return F.interpolate(word, size) >= threshold


def same_side(queries: Tensor, keys: Tensor) -> Tensor:
    """Masks [..., h, w] of the queries' and the keys' picture → [h·w, h·w], True where both are inside or both outside.

    A query whose side has no key at all (a mask lost its last cell on the way to a coarse layer) may attend to all.
    """
    allowed = queries.reshape(-1, 1) == keys.reshape(1, -1)
    return allowed | ~allowed.any(dim=1, keepdim=True)


class Mutual:
    """What the layers of the target's pass take from the source's, in one step.

    A mask is made of the maps of the layers before, of their last row: the conditional one in both passes. Layers with
    the same maps before them share the word's map, and at one resolution the mask.
    """

    def __init__(self, source: Features, words: WordPositions | None, latent: Sequence[int], s: MasaCtrl):
        self.source = source
        self.words = words
        self.latent = latent
        self.s = s
        self._seen: dict[int, Tensor] = {}  # by the number of maps
        self._masks: dict[tuple[int, float], Tensor] = {}

    def __call__(self, layer: Layer, target: Features) -> Attn:
        """For this layer. target: the maps that its pass has given so far."""
        k = self.source.A[layer].k
        v = self.source.A[layer].v
        maps_s, maps = ({before: a for before, a in M.items() if before < layer} for M in (self.source.M, target.M))
        if self.words is None or not maps:
            return Attn(k=k, v=v)
        n = len(maps)
        at = share(layer)
        if n not in self._seen:
            self._seen[n] = self._word(maps_s, maps)
        if (n, at) not in self._masks:
            M_s, M = word_mask(self._seen[n], cells(self.latent, at), self.s.threshold)
            self._masks[n, at] = same_side(M, M_s)  # Eq. (6) to (8)
        return Attn(k=k, v=v, mask=self._masks[n, at])

    def _word(self, maps_s: Mapping[Layer, Attn], maps: Mapping[Layer, Attn]) -> Tensor:
        """Where the word is in the source, and in the target: [2, 1, h, w]."""
        size = cells(self.latent, self.s.mask_share)
        of_both = zip((maps_s, maps), self.words, strict=True)
        return normalised(torch.cat([word_map(M, positions, *size)[-1:] for M, positions in of_both]))

    def check(self) -> None:
        """Raises InputError where a word that made a mask is nowhere."""
        if self._seen:
            check_attended(torch.cat([*self._seen.values()]))


@torch.no_grad()
def masactrl(
    unet: UNet, G: Guidance, text: Tensor, null: Tensor, words: WordPositions | None = None, s: MasaCtrl = MasaCtrl()
) -> Iterator[tuple[int, Tensor]]:
    """text: the target prompt's embedding [1, 77, width]; null: that of the empty or of a negative prompt.

    The source's k and v are taken under G.texts, those of its two rows (null and source prompt) for the same branches
    of the target; with words, its last row is the prompt that the first word stands in.
    Yields (level, latent [1, 4, h, w]) after each step.
    """
    texts = torch.cat([null, text])
    latent = G.x_T.shape[2:]
    maps = layers_at(s.mask_share) if words else ()
    x = G.x_T
    for i, (t, t_prev) in enumerate(pairs(G.levels(s))):
        edit = {}
        mutual = None
        if i >= s.start_step:  # Eq. (5)
            _, source = unet.tap(G.latents[t], t, G.texts, Tap(k=s.layers, v=s.layers, M=maps), stop=True)
            mutual = Mutual(source, words, latent, s)
            edit = {layer: partial(mutual, layer) for layer in s.layers}
        e, _ = unet.tap(x, t, texts, Tap(M=maps), Features(A=edit))
        if mutual is not None:
            mutual.check()
        z = combine(e[1:], e[:1], s.scale)
        x = step(x, z, t, t_prev)
        yield t_prev, x


def words_of_object(o: Original, prompt: str, s: MasaCtrl) -> WordPositions | None:
    """Where the object's word stands in both prompts. InputError: it is not in one of them."""
    return None if s.word is None else word_positions(o.sd.tokenizer, o.source, prompt, s.word)


def _check(o: Original, prompt: str, s: MasaCtrl) -> None:
    words_of_object(o, prompt, s)


def _edit(o: Original, prompt: str, negative: str | None, s: MasaCtrl) -> Steps:
    words = words_of_object(o, prompt, s)
    G = replace(o.guidance(s), texts=torch.cat([o.null, o.text]))
    return masactrl(o.unet, G, o.sd.embed(prompt), o.against(negative), words, replace(s, mask_share=o.share))


METHOD = Method(
    "masactrl",
    "MasaCtrl: the source's keys and values in self-attention",
    MasaCtrl,
    _edit,
    guidance=lambda o, s: o.guidance(s),
    needs_source=lambda s: s.word is not None,
    uses_source=lambda s: True,
    check=_check,
    under_both=False,
)
