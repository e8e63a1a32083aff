"""Methods × ablations: what `evaluate` and `compare` run on an original, by name.

The settings are those of `translate --method`, each method's own defaults, so the scale (where the model does not ask
for one of its own) and the shares of steps are its authors'. Configurations A to E of pix2pix-zero are those of its
ablation: A is SDEdit with the swapped caption; B inverts without regularisation and adds the captions' difference as
the direction; C regularises the inversion; D takes the direction from templates, around the object's words where only
they change, else around the captions; E is all of it, with cross-attention guidance.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from minipnp.errors import InputError
from minipnp.guidance import Progress, silent
from minipnp.measure.benchmarks import Pair
from minipnp.methods.original import Original
from minipnp.methods.registry import METHODS, edit
from minipnp.methods.sdedit import STRENGTHS
from minipnp.options import Options

NOTHING: Mapping[str, object] = {}
CLOSER = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # strengths of SDEdit, closer to each other than STRENGTHS
UNTOLD_SCALE = 7.5  # guidance scale of a benchmark's generated guidance, where its list does not say one


@dataclass(frozen=True)
class Run:
    """A method with some of its options set.

    options: these win over the model's advice. defaults: in the place of the method's own, the model's advice wins.
    word: takes the pair's object, "must" or "may"; "": does not. blend: it is where a local blend may change the
    picture. templates: takes its direction from templates. random_start: x_T is noise, not the guidance's.
    negative: the guidance's text is the negative prompt. kinds: of the pairs that it is meant for; none: for all.
    """

    label: str
    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    word: str = ""
    blend: bool = False
    templates: bool = False
    random_start: bool = False
    negative: bool = False
    kinds: tuple[str, ...] = ()

    def lacks(self, pair: Pair) -> str | None:
        """Why this pair cannot be run, or None."""
        if self.word == "must" and not (pair.word and pair.source):
            return "no word for the object"
        needs_text = self.templates or self.negative
        if not pair.source and (needs_text or METHODS[self.method].needs_source(self.settings_for(pair, {}))):
            return "no text for the picture"
        if self.kinds and pair.kind not in self.kinds:
            return f"meant for the kind {' or '.join(self.kinds)}"
        return None

    def settings_for(self, pair: Pair, given: Mapping[str, object], advised: Mapping[str, object] = NOTHING) -> Options:
        """The method's settings for a pair, with the options that a method does not have passed over.

        given: options of all runs, by name, which win. advised: the model's advice.
        """
        values = {**self.defaults, **advised, **self.options, **given}
        if self.word and pair.word and pair.source:
            values |= {"blend": [pair.word]} if self.blend else {"word": pair.word}
        if self.templates:
            values["change"] = change(pair)
        if self.random_start:
            values["random_start"] = (seed_of(pair) + 1) % 2**64  # the guidance may be of the seed itself
        return METHODS[self.method].settings.given(values)


def change(pair: Pair) -> str:
    """From what to what the direction goes, A=B: the object's words, or the two texts without their first article."""
    before, _, after = (pair.word or "").partition("=")
    source, prompt = (re.sub(r"\ban\b", "a", text) for text in (pair.source, pair.prompt))
    if before != after and source.replace(before, after) == prompt:
        return pair.word
    return "=".join(re.sub(r"^(an?|the) ", "", text.replace("=", " ")) for text in (pair.source, pair.prompt))


RUNS = {
    "pnp": Run("Plug-and-Play", "pnp"),
    "pnp-without-f": Run("Plug-and-Play without f", "pnp", {"tau_f": 0.0}),
    "pnp-without-A": Run("Plug-and-Play without A", "pnp", {"tau_A": 0.0}),
    "pnp-without-both": Run("Plug-and-Play without both", "pnp", {"tau_f": 0.0, "tau_A": 0.0}),
    "pnp-f-4": Run("Plug-and-Play, f of layer 4", "pnp", {"f_layers": "4"}),
    "pnp-f-4-8": Run("Plug-and-Play, f of layers 4-8", "pnp", {"f_layers": "4-8"}),
    "pnp-f-4-11": Run("Plug-and-Play, f of layers 4-11", "pnp", {"f_layers": "4-11"}),
    "pnp-negative": Run("Plug-and-Play, source as negative prompt", "pnp", negative=True, kinds=("silhouette",)),
    "pnp-random": Run("Plug-and-Play, random x_T", "pnp", random_start=True),
    "masked-pnp": Run("Plug-and-Play in a mask", "masked-pnp", word="must"),
    **{f"sdedit-{s}": Run(f"SDEdit {s}", "sdedit", {"strength": s}) for s in sorted({*STRENGTHS, *CLOSER})},
    "ddim": Run("DDIM + word swap", "ddim"),
    "p2p": Run("Prompt-to-Prompt", "p2p"),
    "p2p-full": Run("Prompt-to-Prompt, full share", "p2p", {"cross_replace": 1.0, "self_replace": 1.0}),
    "p2p-blend": Run("Prompt-to-Prompt, local blend", "p2p", word="must", blend=True),
    "p2z": Run("pix2pix-zero", "pix2pix-zero"),
    "p2z-A": Run("pix2pix-zero A", "sdedit", {"strength": 0.5}, {"scale": 5.0}),
    "p2z-B": Run("pix2pix-zero B", "pix2pix-zero", {"lambda_ac": 0.0, "lambda_kl": 0.0, "amount": 0.0}),
    "p2z-C": Run("pix2pix-zero C", "pix2pix-zero", {"amount": 0.0}),
    "p2z-D": Run("pix2pix-zero D", "pix2pix-zero", {"amount": 0.0}, templates=True),
    "p2z-E": Run("pix2pix-zero E", "pix2pix-zero", templates=True),
    "masactrl": Run("MasaCtrl", "masactrl", word="may"),
    "skip-inject": Run("SkipInject", "skip-inject"),
}
MORE = {"p2p-blend", "p2z", "skip-inject", "pnp-f-4", "pnp-f-4-8", "pnp-f-4-11", "pnp-negative"}
MORE |= {f"sdedit-{s}" for s in CLOSER if s not in STRENGTHS}
EVALUATED = tuple(name for name in RUNS if name not in MORE)  # if nothing else is said
COMPARED = (
    "pnp",
    "masked-pnp",
    *(f"sdedit-{s}" for s in STRENGTHS),
    "ddim",
    "p2p",
    "p2p-blend",
    "p2z",
    "masactrl",
    "skip-inject",
)


def check_runs(names: list[str] | tuple[str, ...], known: tuple[str, ...] = tuple(RUNS)) -> None:
    """Raises InputError for a name that is none of the known."""
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--methods {','.join(unknown)}: give some of {', '.join(known)}")


def seed_of(pair: Pair) -> int:
    """Of all noise that is drawn for the pair's guidance: the list's own, or one that follows from its name."""
    if pair.seed is not None:
        return pair.seed
    return int.from_bytes(hashlib.sha256(pair.guidance.encode()).digest()[:4], "big")


def run_on(
    run: Run,
    o: Original,
    pair: Pair,
    given: Mapping[str, object],
    advised: Mapping[str, object] = NOTHING,
    negative: str | None = None,
    progress: Progress = silent,
) -> Tensor:
    """The picture [1, 3, H, W], about [−1, 1]. InputError: the method cannot do this pair."""
    negative = pair.source if run.negative else negative
    return edit(o, pair.prompt, run.settings_for(pair, given, advised), negative, progress)
