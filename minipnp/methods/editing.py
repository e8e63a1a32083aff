"""The editing methods by name, from a picture and words: what `translate --method` and `compare` run.

The methods themselves are in methods/ and pnp.py; here words become positions, pictures become latents, and what
several methods need of a picture, its inversion under a text, is made once.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.errors import InputError
from minipnp.files.images import fit, read_image, to_tensor
from minipnp.guidance import Progress, silent
from minipnp.methods.align import new_phrase, windows, word_swap
from minipnp.methods.ddim_swap import DDIMSwap, ddim_swap
from minipnp.methods.directions import direction, load_direction, read_sentences, save_direction, sentences
from minipnp.methods.masactrl import MasaCtrl, masactrl
from minipnp.methods.masked_pnp import Mask, Word, masked_plug_and_play
from minipnp.methods.original import Original
from minipnp.methods.p2p import P2P, LocalBlend, prompt_to_prompt
from minipnp.methods.pix2pix_zero import Pix2PixZero, pix2pix_zero
from minipnp.methods.regularised import Regularisation
from minipnp.methods.sdedit import SDEdit, sdedit
from minipnp.methods.words import positions, words_of
from minipnp.pnp import PnP, plug_and_play

Steps = Iterator[tuple[int, Tensor]]  # (level, latent) after each step


@dataclass(frozen=True)
class Method:
    """run(original, prompt, null, **options) → the steps of the edit. null: embedding of the empty or negative prompt.

    options: names and defaults. source: whether it needs a text for the original.
    """

    run: Callable[..., Steps]
    what: str
    source: bool = True

    @property
    def options(self) -> dict[str, object]:
        parameters = list(inspect.signature(self.run).parameters.values())[3:]
        return {p.name: p.default for p in parameters}


def pnp(o: Original, prompt: str, null: Tensor, steps=50, scale=7.5, tau_f=0.8, tau_A=0.5) -> Steps:
    s = PnP(steps=steps, scale=scale, tau_f=tau_f, tau_A=tau_A)
    return plug_and_play(o.sd.unet, o.guidance(steps), [o.sd.embed(prompt)], null, s=s)


def sdedit_(o: Original, prompt: str, null: Tensor, steps=50, scale=7.5, strength=0.5) -> Steps:
    x_0 = o.x_0(steps)
    z = o.sd.noise(*x_0.shape[2:], (o.seed + o.generated) % 2**64)  # a generated picture began with that of `seed`
    return sdedit(o.sd.unet, x_0, z, o.sd.embed(prompt), null, SDEdit(steps, strength, scale))


def ddim(o: Original, prompt: str, null: Tensor, steps=50, scale=5.0) -> Steps:
    return ddim_swap(o.sd.unet, o.guidance(steps, by_source=True), o.sd.embed(prompt), null, DDIMSwap(steps, scale))


def p2p(
    o: Original, prompt: str, null: Tensor, steps=50, scale=7.5, cross_replace=0.8, self_replace=0.4, align="auto",
    weight: dict[str, float] | None = None, share: dict[str, float] | None = None,
    blend: list[str] | None = None, spare: list[str] | None = None, blend_threshold=0.3, blend_start=0.2,
    self_side: float | None = None, as_published=False,
) -> Steps:  # fmt: skip
    """weight, share: of words of the prompt. blend, spare: words ("horse", or "horse=cow" for source and target) that
    may change, and that may not. as_published: the authors' alignment of what follows words of unequal token counts.
    """
    tokenizer, side = o.sd.tokenizer, o.share if self_side is None else self_side
    s = P2P(steps, cross_replace, self_replace, side, scale)
    if null is o.null and not o.generated:
        # An inverted picture comes back at any guidance scale only where its own text is the negative prompt too.
        null = o.text
    if align not in ("auto", "swap", "phrase"):
        raise InputError(f"align {align!r}: give auto, swap or phrase")
    alike = len(words_of(tokenizer, o.source)) == len(words_of(tokenizer, prompt))
    by_word = align == "swap" or (align == "auto" and alike)
    alignment = (word_swap if by_word else new_phrase)(tokenizer, o.source, prompt, as_published)

    def at(values: dict[str, float] | None) -> dict[int, float]:
        return {i: value for word, value in (values or {}).items() for i in positions(tokenizer, prompt, word)}

    def named(words: list[str] | None) -> tuple[dict, dict]:
        pairs = [_pair(word) for word in words or []]
        return tuple(
            {pair[k]: positions(tokenizer, text, pair[k]) for pair in pairs}
            for k, text in enumerate((o.source, prompt))
        )

    if spare and not blend:
        raise InputError("--spare takes cells out of a local blend: give --blend too")
    thresholds, weights, shares = (blend_threshold, blend_threshold), at(weight), at(share)
    edited = windows(steps, cross_replace, shares).any(dim=0)
    if unused := [word for word in weight or {} if not edited[list(at({word: 1.0}))].any()]:
        raise InputError(f"--weight {unused[0]}=… changes nothing: --cross-replace or --share edits its map in no step")
    local = LocalBlend(named(blend), named(spare), thresholds, blend_start, o.share) if blend else None
    G = o.guidance(steps, by_source=True)
    return prompt_to_prompt(
        o.sd.unet, G, o.text, o.sd.embed(prompt), null, alignment, s, weights, shares, local
    )  # fmt: skip


def pix2pix_zero_(
    o: Original, prompt: str, null: Tensor, steps=50, scale=5.0, amount: float | None = None, change: str | None = None,
    direction_file: str | None = None, save_direction_to: str | None = None, lambda_ac=20.0, lambda_kl=20.0,
    gain=1.0, as_published=False,
) -> Steps:  # fmt: skip
    """change: "cat=dog", words or files of sentences; without it, and without a file, the direction is that from the
    source's text to the prompt's. as_published: inversion and edit as the authors' code, not their paper, has them.
    """
    sd = o.sd
    if direction_file and change:
        raise InputError("give either --change or --direction, not both")
    if direction_file:
        delta, _ = load_direction(direction_file, sd.text_encoder.config.width)
    else:
        before, after = _change(change) if change else ([o.source], [prompt])
        delta = direction(sd.embed, before, after)
    s = Pix2PixZero(steps, scale, (0.15 if o.generated else 0.1) if amount is None else amount, as_published)
    how = None if o.generated else Regularisation(lambda_ac, lambda_kl, gain=gain, seed=o.seed, authors=as_published)
    if save_direction_to and not direction_file:
        names = _pair(change) if change else (o.source, prompt)
        save_direction(save_direction_to, delta, *names, len(before))
    G, against = (o.guidance(steps), null) if how is None else (o.regularised(steps, how), None)
    return pix2pix_zero(sd.unet, G, delta.to(sd.device), against, s)


def masactrl_(
    o: Original, prompt: str, null: Tensor, steps=50, scale=7.5, word: str | None = None, start_step=4, start_layer=10,
    threshold=0.1,
) -> Steps:  # fmt: skip
    """word: "horse", or "horse=cow" for the source's and the prompt's; without it there are no masks."""
    s = MasaCtrl(steps, scale, start_step, start_layer, threshold, o.share)
    words = _positions(o, prompt, word) if word else None
    G = replace(o.guidance(steps), texts=torch.cat([o.null, o.text]))
    return masactrl(o.sd.unet, G, o.sd.embed(prompt), null, words, s)


def masked_pnp(
    o: Original, prompt: str, null: Tensor, steps=50, scale=7.5, tau_f=0.8, tau_A=0.5, word: str | None = None,
    mask: str | None = None, threshold=0.3,
) -> Steps:  # fmt: skip
    """word: as for MasaCtrl; or mask: a picture, white where the object is."""
    if (word is None) == (mask is None):
        raise InputError("masked-pnp needs the object: give either --word or --mask")
    s, m = PnP(steps=steps, scale=scale, tau_f=tau_f, tau_A=tau_A), Mask(threshold=threshold, share=o.share)
    where = Word(o.text, *_positions(o, prompt, word)) if word else _mask(o, mask, steps)
    return masked_plug_and_play(o.sd.unet, o.guidance(steps), o.sd.embed(prompt), null, where, s=s, m=m)


METHODS = {
    "pnp": Method(pnp, "Plug-and-Play: layout by features and self-attention", source=False),
    "sdedit": Method(sdedit_, "SDEdit: noise to a strength, denoise with the prompt", source=False),
    "ddim": Method(ddim, "DDIM + word swap: invert with the source text, sample with the prompt"),
    "p2p": Method(p2p, "Prompt-to-Prompt: edits cross-attention maps"),
    "pix2pix-zero": Method(
        pix2pix_zero_, "pix2pix-zero: a direction, held to the source's cross-attention", source=False
    ),
    "masactrl": Method(masactrl_, "MasaCtrl: the source's keys and values in self-attention", source=False),
    "masked-pnp": Method(masked_pnp, "Plug-and-Play inside a foreground mask", source=False),
}


def edit(
    name: str,
    o: Original,
    prompt: str,
    negative: str | None = None,
    options: dict | None = None,
    progress: Progress = silent,
) -> Tensor:
    """The picture [1, 3, H, W] that a method makes. Raises InputError for an option that the method does not have.

    negative: pix2pix-zero has one for a generated picture only; its inversion of another is without guidance.
    """
    method, options = METHODS[name], options or {}
    if foreign := options.keys() - method.options.keys():
        has = ", ".join(sorted(method.options))
        raise InputError(f"{name} has no option {', '.join(sorted(foreign))}; it has {has}")
    if not o.source and (method.source or "word" in options):
        raise InputError(f"{name} needs a text for the picture that is edited: give --source")
    if name == "pix2pix-zero" and not (o.source or options.keys() & {"change", "direction_file"}):
        raise InputError("pix2pix-zero needs a direction: give --change WORD=WORD, --direction, or --source")
    steps = options.get("steps", method.options["steps"])
    null = o.null if negative is None else o.sd.embed(negative)
    *_, (_, x_0) = progress(method.run(o, prompt, null, **options), steps, name)
    return o.sd.decode(x_0)


def _pair(word: str) -> tuple[str, str]:
    """ "horse=cow" → ("horse", "cow"); "horse" → the same twice."""
    before, equals, after = word.partition("=")
    return before, after if equals else before


def _positions(o: Original, prompt: str, word: str) -> tuple[list[int], list[int]]:
    before, after = _pair(word)
    return positions(o.sd.tokenizer, o.source, before), positions(o.sd.tokenizer, prompt, after)


def _change(change: str) -> tuple[list[str], list[str]]:
    before, equals, after = change.partition("=")
    if not (before and equals and after):
        raise InputError(
            f"--change {change!r}: give WORD=WORD, such as cat=dog, or FILE=FILE with a sentence on each line"
        )
    return tuple(read_sentences(part) if part.endswith(".txt") else sentences(part) for part in (before, after))


def _mask(o: Original, path: str, steps: int) -> Tensor:
    """A mask picture → [1, 1, h, w], 0 to 1. It is cropped as the picture was. InputError: it has another shape."""
    cells, factor = tuple(o.x_0(steps).shape[2:]), o.sd.vae.config.factor
    picture = fit(read_image(path), factor * min(cells), o.sd.multiple, o.square)
    height, width = (factor * side for side in cells)
    if picture.size != (width, height):
        raise InputError(f"--mask {path}: give a mask of the picture's own shape, which is edited at {width}x{height}")
    white = F.interpolate((to_tensor(picture).mean(dim=1, keepdim=True) + 1) / 2, cells, mode="area")
    if (white >= 0.5).all():
        raise InputError(f"--mask {path}: white all over; the background must be black, and not transparent")
    return white
