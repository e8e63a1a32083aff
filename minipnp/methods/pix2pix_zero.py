"""pix2pix-zero (Parmar et al. 2023): an edit direction in the text, and guidance by cross-attention maps.

    x_T ← regularised DDIM inversion of the picture under its caption c            Sec. 3.1, regularised.py
    Δc  ← mean embedding of target sentences − that of source sentences            Sec. 3.2, directions.py
    for t = T … 1:                                                                 Sec. 3.3, Algorithm 1
        M_t^ref  ← cross-attention maps of the source's x_t under c
        M_t^edit ← cross-attention maps of the edit's x_t under c + Δc
        x_t      ← x_t − λ_xa · ∇_x ‖M_t^edit − M_t^ref‖²
        x_{t−1}  ← DDIM(x_t, ε(x_t, t, c + Δc))

The maps of a step are used in that step and dropped: those of the source are computed again from its latents, where the
authors keep all of them. The gradient reaches back through the network from its last map, for the conditional branch.
On CUDA it is not deterministic: PyTorch's backward passes of attention and convolutions add up in no fixed order there.

The paper's ablation, Table 2. A: SDEdit with the word swapped in the caption. B: inversion without regularisation (both
λ 0), the word swap as Δc (see directions.py), amount 0. C: B with regularisation. D: C with Δc of many sentences. E: D
with λ_xa, the defaults.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minipnp.ddim import guided, pairs, step
from minipnp.errors import InputError
from minipnp.guidance import Guidance
from minipnp.methods.directions import direction, load_direction, read_sentences, save_direction, sentences
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.methods.regularised import Regularisation
from minipnp.methods.words import pair_of
from minipnp.options import PATH, PLACE, POSITIVE, SWITCH, Form, Stepped, option, scale_option
from minipnp.slots import Attn, Layer, Tap
from minipnp.unet import ATTENTIONS, UNet

Maps = Mapping[Layer, Attn]


def files_of_change(change: str) -> list[str]:
    return [part for part in change.split("=") if part.endswith(".txt")]


def _with_home(change: str) -> str:
    return "=".join(os.path.expanduser(part) if part.endswith(".txt") else part for part in change.split("="))


CHANGE = Form(
    "A=B, such as cat=dog, or FILE=FILE with a sentence on each line",
    str,
    read=_with_home,
    metavar="A=B",
    files=files_of_change,
)
AMOUNT = 0.1  # λ_xa for a picture; GENERATED_AMOUNT for a generated one: both the authors'
GENERATED_AMOUNT = 0.15


@dataclass(frozen=True)
class Pix2PixZero(Stepped):
    """The settings of an edit.

    authors: as their code, not their paper, has it: the maps of both branches are compared, each branch steps an x of
    its own, and that of the negative branch is the one that goes on. The mean over two rows halves each one's gradient.
    In the inversion, too, their code's form is taken.
    """

    scale: float = scale_option(5.0)
    amount: float | None = option(
        None, f"amount λ_xa of cross-attention guidance (default: {AMOUNT}; generated {GENERATED_AMOUNT})", POSITIVE
    )
    authors: bool = option(
        False, "as the authors' code has it, where it differs from what is here", SWITCH, name="as_published"
    )
    change: str | None = option(
        None,
        "the direction, such as cat=dog, or two .txt files of sentences (default: from --source to --prompt)",
        CHANGE,
    )
    direction_file: str | None = option(None, "a direction that was saved", PATH, flag="--direction")
    save_direction_to: str | None = option(None, "save the direction in this file", PLACE, flag="--save-direction")
    lambda_ac: float = option(Regularisation.lambda_ac, "weight of the inversion's autocorrelation loss", POSITIVE)
    lambda_kl: float = option(Regularisation.lambda_kl, "weight of the inversion's KL loss", POSITIVE)
    gain: float = option(
        Regularisation.gain, "gain of each level of that loss's pyramid; the paper has 2, its code 1", POSITIVE
    )

    def __post_init__(self):
        super().__post_init__()
        if self.authors and self.scale in (0, 1):
            raise InputError(f"guidance scale {self.scale} has one branch, the authors' form takes two: give another")
        if self.direction_file and self.change:
            raise InputError("give either --change or --direction, not both")


def cross_maps(unet: UNet, x: Tensor, t: int, texts: Tensor) -> Maps:
    """M_t of all 16 cross-attentions, [rows, heads, cells, 77] each; the pass ends with the last."""
    return unet.tap(x, t, texts, Tap(M=ATTENTIONS), stop=True)[1].M


def map_distance(M: Maps, M_ref: Maps) -> Tensor:
    """‖M − M_ref‖²: summed over cells, tokens and layers, the mean of the heads (and rows)."""
    return sum((M[layer].map.float() - M_ref[layer].map.float()).square().sum((2, 3)).mean() for layer in M_ref)


def map_gradient(unet: UNet, x: Tensor, t: int, texts: Tensor, M_ref: Maps) -> Tensor:
    """∇_x ‖M_t^edit − M_t^ref‖², of x's shape, also where gradients are off; of two rows, each of its own maps."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(map_distance(cross_maps(unet, x, t, texts), M_ref), x)
    if not g.isfinite().all():
        raise InputError("a gradient became infinite: give a smaller amount, or use float32")
    return g


@torch.no_grad()
def pix2pix_zero(
    unet: UNet, G: Guidance, direction: Tensor, negative: Tensor | None = None, s: Pix2PixZero = Pix2PixZero()
) -> Iterator[tuple[int, Tensor]]:
    """G: of a real picture from `regularised_inversion`, of a generated one from `guidance_from_text`; its text is c.

    direction: Δc [1, 77, width]. negative: embedding of the negative prompt. For a real picture None, which means c:
    only the difference that Δc makes is amplified. For a generated picture that of "", with which it was generated.
    Yields (level, latent [1, 4, h, w]) after each step.
    """
    c = G.texts[-1:]
    levels = G.levels(s)
    if direction.shape != c.shape:
        raise InputError(f"an edit direction {list(direction.shape)} does not fit text embeddings {list(c.shape)}")
    edited = c + direction.to(c)
    negative = c if negative is None else negative
    branches = 2 if s.authors else 1
    amount = AMOUNT if s.amount is None else s.amount
    x = G.x_T
    for t, t_prev in pairs(levels):
        if amount:
            M_ref = cross_maps(unet, G.latents[t], t, torch.cat([c, negative])[:branches])
            x = x.repeat(branches, 1, 1, 1)
            x = x - amount * map_gradient(unet, x, t, torch.cat([edited, negative])[:branches], M_ref)
        z = guided(unet, x, t, edited, negative, s.scale)  # both of one x, or each of its own
        x = step(x[-1:], z, t, t_prev)
        yield t_prev, x


def sentences_of(change: str) -> tuple[list[str], list[str]]:
    """ "cat=dog", or two files of sentences → the sentences about the one and about the other."""
    before, equals, after = change.partition("=")
    if not (before and equals and after):
        raise InputError(
            f"--change {change!r}: give WORD=WORD, such as cat=dog, or FILE=FILE with a sentence on each line"
        )
    return tuple(read_sentences(part) if part.endswith(".txt") else sentences(part) for part in (before, after))


def direction_for(o: Original, prompt: str, s: Pix2PixZero) -> Tensor:
    """Δc [1, 77, width]: the saved one, that of `change`, or that from the source's text to the prompt. Made once."""
    return o.once((prompt, s), lambda: _direction_for(o, prompt, s))


def _direction_for(o: Original, prompt: str, s: Pix2PixZero) -> Tensor:
    if s.direction_file:
        return load_direction(s.direction_file, o.sd.text_encoder.config.width)[0]
    before, after = sentences_of(s.change) if s.change else ([o.source], [prompt])
    delta = direction(o.sd.embed, before, after)
    if s.save_direction_to:
        names = pair_of(s.change) if s.change else (o.source, prompt)
        save_direction(s.save_direction_to, delta, *names, len(before))
    return delta


def _inverted(o: Original, s: Pix2PixZero) -> Guidance:
    """The regularised inversion of a picture; a generated original is not inverted."""
    if o.generated:
        return o.guidance(s)
    how = Regularisation(s.lambda_ac, s.lambda_kl, gain=s.gain, seed=o.seed, authors=s.authors)
    return o.regularised(s, how)


def _edit(o: Original, prompt: str, negative: str | None, s: Pix2PixZero) -> Steps:
    """A negative prompt is taken for a generated original only: the inversion of a picture is without guidance."""
    delta = direction_for(o, prompt, s).to(o.sd.device)
    if o.generated and s.amount is None:
        s = replace(s, amount=GENERATED_AMOUNT)
    return pix2pix_zero(o.unet, _inverted(o, s), delta, o.against(negative) if o.generated else None, s)


def _between_texts(s: Pix2PixZero) -> bool:
    """Whether the direction goes from the source's text to the prompt."""
    return not (s.change or s.direction_file)


def _check(o: Original, prompt: str, s: Pix2PixZero) -> None:
    direction_for(o, prompt, s)
    before = pair_of(s.change or "")[0]
    if o.source and before and not before.endswith(".txt") and before.lower() not in o.source.lower():
        warnings.warn(f"--change: {before!r} is not in the source's text {o.source!r}", stacklevel=2)


METHOD = Method(
    "pix2pix-zero",
    "pix2pix-zero: a direction, held to the source's cross-attention",
    Pix2PixZero,
    _edit,
    guidance=_inverted,
    needs_source=_between_texts,
    reads_prompt=_between_texts,
    check=_check,
    or_else=", --change WORD=WORD, or --direction",
    uses_source=lambda s: True,
    draws=True,
    under_both=False,
    own_inversion=True,
)
