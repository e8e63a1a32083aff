"""Methods × ablations: what an evaluation runs on every pair, by name.

The settings are those of `translate --method`, each method's own defaults, so the scale (where the model does not ask
for one of its own) and the shares of steps are its authors'. Configurations A to E of pix2pix-zero are those of its
ablation: A is SDEdit with the swapped caption; B inverts without regularisation and adds the captions' difference as
the direction; C regularises the inversion; D takes the direction from templates, around the object's words where only
they change, else around the captions; E is all of it, with cross-attention guidance.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minipnp.guidance import Progress, silent
from minipnp.measure.benchmarks import Pair
from minipnp.methods.editing import METHODS, edit
from minipnp.methods.original import Original
from minipnp.methods.sdedit import STRENGTHS
from minipnp.pipeline import check_noise
from minipnp.pnp import PnP, plug_and_play


@dataclass(frozen=True)
class Run:
    """method, options: of editing.py. word: takes the pair's object, "must" or "may"; "": does not.

    templates: takes its direction from templates. random_start: x_T is noise, not the guidance's.
    """

    label: str
    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    word: str = ""
    templates: bool = False
    random_start: bool = False

    def lacks(self, pair: Pair) -> str | None:
        """Why this pair cannot be run, or None."""
        if not pair.source and (METHODS[self.method].source or self.method == "pix2pix-zero"):
            return "no text for the picture"
        if self.word == "must" and not (pair.word and pair.source):
            return "no word for the object"
        return None

    def options_for(self, pair: Pair, steps: int | None, scale: float | None = None) -> dict[str, object]:
        given = {"steps": steps, "scale": scale}
        options = dict(self.options) | {name: value for name, value in given.items() if value is not None}
        if self.word and pair.word and pair.source:
            options["word"] = pair.word
        if self.templates:
            options["change"] = change(pair)
        return options


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
    "pnp-random": Run("Plug-and-Play, random x_T", "pnp", random_start=True),
    "masked-pnp": Run("Plug-and-Play in a mask", "masked-pnp", word="must"),
    **{f"sdedit-{s}": Run(f"SDEdit {s}", "sdedit", {"strength": s}) for s in STRENGTHS},
    "ddim": Run("DDIM + word swap", "ddim"),
    "p2p": Run("Prompt-to-Prompt", "p2p"),
    "p2p-full": Run("Prompt-to-Prompt, full share", "p2p", {"cross_replace": 1.0, "self_replace": 1.0}),
    "p2z-A": Run("pix2pix-zero A", "sdedit", {"strength": 0.5, "scale": 5.0}),
    "p2z-B": Run("pix2pix-zero B", "pix2pix-zero", {"lambda_ac": 0.0, "lambda_kl": 0.0, "amount": 0.0}),
    "p2z-C": Run("pix2pix-zero C", "pix2pix-zero", {"amount": 0.0}),
    "p2z-D": Run("pix2pix-zero D", "pix2pix-zero", {"amount": 0.0}, templates=True),
    "p2z-E": Run("pix2pix-zero E", "pix2pix-zero", templates=True),
    "masactrl": Run("MasaCtrl", "masactrl", word="may"),
}


def seed_of(pair: Pair) -> int:
    """Of all noise that is drawn for the pair's guidance: the list's own, or one that follows from its name."""
    return (
        pair.seed
        if pair.seed is not None
        else int.from_bytes(hashlib.sha256(pair.guidance.encode()).digest()[:4], "big")
    )


def run_method(
    r: Run, o: Original, pair: Pair, steps: int | None = None, scale: float | None = None, progress: Progress = silent
) -> Tensor:
    """The picture [1, 3, H, W], about [−1, 1]. InputError: the method cannot do this pair."""
    options = r.options_for(pair, steps, scale)
    if not r.random_start:
        return edit(r.method, o, pair.prompt, options=options, progress=progress)
    s = replace(PnP(), steps=options.pop("steps", PnP().steps), **options)
    check_noise(s.steps)
    G = o.guidance(s.steps)
    x_T = o.sd.noise(*G.x_T.shape[2:], (o.seed + 1) % 2**64)  # the guidance may be of `seed` itself
    with torch.no_grad():
        *_, (_, x_0) = progress(
            plug_and_play(o.sd.unet, G, [o.sd.embed(pair.prompt)], o.null, s=s, x_T=x_T), s.steps, r.method
        )
    return o.sd.decode(x_0)
