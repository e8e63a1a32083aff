"""Plug-and-Play with a foreground mask: the edit stays where the object is.

Plug-and-Play keeps the layout of the guidance picture and repaints all of it. Here a mask M says which cells are the
object's, by its word's cross-attention (the idea of MasaCtrl) or as the user gives it, and at every step

    self-attention stays on its side of M: no values of the background come into the object, nor the other way round;
    x*_{t−1} ← x^G_{t−1} + M·(x*_{t−1} − x^G_{t−1}): outside M the latents are the guidance's own.

By word, M is where either the guidance or the translation attends to it, so that the old object can go and the new one
be whole. Their maps are summed over the steps so far, as in Prompt-to-Prompt's local blend: M is then known before a
step begins (but the first), and follows the object better than one step's map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.ddim import CLEAN, combine, guided, pairs, step
from minipnp.errors import InputError
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.guidance import Guidance
from minipnp.methods.maps import layers_at, share, word_map
from minipnp.methods.masactrl import cells, check_attended, check_mask, normalised, same_side, word_mask
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.methods.words import word_positions
from minipnp.options import PATH, SHARE, WORD, option
from minipnp.pipeline import random_start
from minipnp.pnp import PnP, guidance_features
from minipnp.slots import Attn, Features, Layer, Tap
from minipnp.unet import UNet


@dataclass(frozen=True)
class Word:
    """The object by its name. source: embedding [1, 77, width] of a prompt for the guidance picture; in_source,
    in_target: the word's positions in that prompt, and in the target's.
    """

    source: Tensor
    in_source: Sequence[int]
    in_target: Sequence[int]


@dataclass(frozen=True)
class Mask:
    """What is done with a mask, and how it is made of a word.

    latents: outside the mask they are the guidance's. attention: it stays on its side of the mask at all steps, in the
    layers whose A Plug-and-Play injects. threshold, share: of the word's maps, see `MasaCtrl`; 0.3 suits summed maps.
    """

    latents: bool = True
    attention: bool = True
    threshold: float = 0.3
    share: float = 1 / 4

    def __post_init__(self):
        check_mask(self.threshold, self.share)


@dataclass(frozen=True)
class MaskedPnP(PnP):
    """The settings of an edit: those of Plug-and-Play, and the object, by `word` or by `mask`."""

    word: str | None = option(None, "the object: horse, or horse=cow for the source's and the prompt's", WORD)
    mask: str | None = option(None, "the object, white, in a picture of the original's shape", PATH)
    threshold: float = option(
        Mask.threshold, "share of the range of a word's map from which a cell is the object's", SHARE
    )

    def __post_init__(self):
        super().__post_init__()
        check_mask(self.threshold, Mask.share)
        if (self.word is None) == (self.mask is None):
            raise InputError("masked-pnp needs the object: give either --word or --mask")


@torch.no_grad()
def masked_plug_and_play(
    unet: UNet,
    G: Guidance,
    text: Tensor,
    null: Tensor,
    where: Word | Tensor,
    negative: Tensor | None = None,
    s: PnP = PnP(),
    m: Mask = Mask(),
    x_T: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """text, null, negative: as for `plug_and_play`, for one target. where: the object's word, or the user's mask
    [1, 1, h, w] in the latent's cells, 0 to 1, edited where it is 0.5 or more; all 1 is Plug-and-Play as it is.

    Yields (level, latent [1, 4, h, w]) after each step.
    """
    latent = tuple(G.x_T.shape[2:])
    alphas = s.alphas()
    named = isinstance(where, Word)
    maps = layers_at(m.share) if named else ()
    M = None if named else given(where, G.x_T)
    seen_G = 0
    seen = 0
    x = G.x_T if x_T is None else x_T  # x*_T ← x^G_T
    for i, (t, t_prev) in enumerate(pairs(G.levels(s))):
        injected = guidance_features(unet, G, i, t, s)  # f*_t, {A*^l_t}
        if m.attention and M is not None:
            injected = on_its_side(injected, M, s.A_layers)
        # Eq. (5), its conditional pass by itself: of that one the cross-attention is read.
        z_P, target = unet.tap(x, t, text, Tap(M=maps), injected.rows([-1]))
        z_null = guided(unet, x, t, text, null, 0.0, negative, alphas[i], injected)
        x = step(x, combine(z_P, z_null, s.scale), t, t_prev)
        if named:
            _, source = unet.tap(G.latents[t], t, where.source, Tap(M=maps), stop=True)
            seen_G = seen_G + word_map(source.M, where.in_source, *cells(latent, m.share))
            seen = seen + word_map(target.M, where.in_target, *cells(latent, m.share))
            word = normalised(torch.cat([seen_G, seen]))
            check_attended(word)
            M_G, M_own = word_mask(word, latent, m.threshold).split(1)
            M = M_G | M_own
        if m.latents:
            x = torch.where(M, x, G.x_0 if t_prev == CLEAN else G.latents[t_prev])
        yield t_prev, x


def given(mask: Tensor, x: Tensor) -> Tensor:
    """The user's mask as True and False, for latents like x."""
    wanted = x[:, :1].shape
    if mask.shape != wanted:
        raise InputError(f"a mask of {list(mask.shape)}: for this picture give {list(wanted)}, the latent's cells")
    if not (mask >= 0.5).any():
        raise InputError("the mask is empty, so nothing would be edited: make the object white")
    return (mask >= 0.5).to(x.device)


def on_its_side(injected: Features, M: Tensor, layers: Sequence[Layer]) -> Features:
    """The same features, and in these layers a query may attend to the keys on its own side of M [1, 1, h, w] only."""
    at = {size: F.interpolate(M.float(), cells(M.shape[2:], size)) for size in {share(layer) for layer in layers}}
    sides = {size: same_side(mask, mask) for size, mask in at.items()}
    masked = {layer: replace(injected.A.get(layer, Attn()), mask=sides[share(layer)]) for layer in layers}
    return injected._replace(A={**injected.A, **masked})


def read_mask(o: Original, path: str) -> Tensor:
    """A mask picture → [1, 1, h, w], 0 to 1. It is cropped as the original was. InputError: it has another shape."""
    cells = o.latent_sides
    factor = o.sd.vae.config.factor
    picture = fit(read_image(path), factor * min(cells), o.sd.multiple, o.taking.square)
    height, width = (factor * side for side in cells)
    if picture.size != (width, height):
        raise InputError(f"--mask {path}: give a mask of the picture's own shape, which is edited at {width}x{height}")
    white = F.interpolate((to_tensor(picture).mean(dim=1, keepdim=True) + 1) / 2, cells, mode="area")
    if (white >= 0.5).all():
        raise InputError(f"--mask {path}: white all over; the background must be black, and not transparent")
    return white


def object_of(o: Original, prompt: str, s: MaskedPnP) -> Word | Tensor:
    """Where the object is, by its word or by the user's mask. InputError: a prompt lacks the word, the mask is none."""
    if s.word is None:
        return read_mask(o, s.mask)
    return Word(o.text, *word_positions(o.sd.tokenizer, o.source, prompt, s.word))


def _check(o: Original, prompt: str, s: MaskedPnP) -> None:
    object_of(o, prompt, s)


def _edit(o: Original, prompt: str, negative: str | None, s: MaskedPnP) -> Steps:
    where = object_of(o, prompt, s)
    G = o.guidance(s)
    against = None if negative is None else o.sd.embed(negative)
    m = Mask(threshold=s.threshold, share=o.share)
    x_T = random_start(o.sd, G, s)
    return masked_plug_and_play(o.unet, G, o.sd.embed(prompt), o.null, where, against, s, m, x_T)


METHOD = Method(
    "masked-pnp",
    "Plug-and-Play inside a foreground mask",
    MaskedPnP,
    _edit,
    guidance=lambda o, s: o.guidance(s),
    needs_source=lambda s: s.word is not None,
    check=_check,
)
