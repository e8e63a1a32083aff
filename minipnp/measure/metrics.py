"""What is measured of an edit, by name, and the columns that it gives."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.machine.speed import exact_float32
from minipnp.measure import clip, dino, icons, lpips, published
from minipnp.measure.benchmarks import Pair
from minipnp.measure.edges import edge_correlation

DAMAGED = (RuntimeError, KeyError, SafetensorError, UnpicklingError)  # what reading weights raises then
CLASSIFIER = hub.WEIGHTS / "bundled" / "classifier"


class Column(NamedTuple):
    label: str
    better: int  # +1: more of it, −1: less


COLUMNS = {
    "structure": Column("structure distance", -1),
    "iou": Column("mask IoU", +1),
    "edges": Column("edges", +1),
    "background": Column("background LPIPS", -1),
    "clip": Column("CLIP score", +1),
    "clip_acc": Column("CLIP-Acc", +1),
    "style": Column("style", +1),
    "concept": Column("concept", +1),
    "colour": Column("background colour", +1),
    "fidelity": Column("text fidelity", +1),
    "probability": Column("text probability", +1),
    "style_left": Column("guidance's style seen", -1),
    "colour_left": Column("guidance's colour kept", -1),
    "psnr": Column("PSNR, dB", +1),
    "ssim": Column("SSIM", +1),
}


class Case(NamedTuple):
    """before, after: the guidance picture and the translation, [1, 3, H, W] in [−1, 1], as 8 bits hold them."""

    pair: Pair
    before: Tensor
    after: Tensor


Values = dict[str, float]


@dataclass(frozen=True)
class Metrics:
    """measures: by name. weights: SHA-256 of the networks' files."""

    measures: dict[str, Callable[[Case], Values]]
    weights: dict[str, str]

    def __call__(self, case: Case) -> Values:
        return {column: value for measure in self.measures.values() for column, value in measure(case).items()}


LAYOUTS = {  # which benchmarks a metric is for
    "clip": ("ti2i", "pie", "bundled"),
    "clip-acc": ("ti2i", "pie", "bundled"),
    "structure": ("ti2i", "pie", "bundled"),
    "background": ("pie", "bundled"),
    "icons": ("bundled",),
    "iou": ("bundled",),
    "edges": ("ti2i", "pie", "bundled"),
    "leakage": ("bundled",),
}
USUAL = {
    "ti2i": ("clip", "structure"),
    "pie": ("clip", "structure", "background"),
    "bundled": ("icons", "iou", "edges"),
}


def load_metrics(
    names: Iterable[str],
    layout: str,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    classifier: Path = CLASSIFIER,
) -> Metrics:
    """names: of LAYOUTS. folder: of the published networks' files; None: the hub's cache, or the hub.

    InputError: no such metric, not for this benchmark, or its network is missing.
    """
    exact_float32(torch.device(device))  # the networks that measure are float32, whatever the model's type is
    measures = {}
    weights = {}
    for name in dict.fromkeys(names):
        if name not in LAYOUTS:
            raise InputError(f"--metrics {name}: give some of {', '.join(LAYOUTS)}")
        if layout not in LAYOUTS[name]:
            why = "there are no masks in it" if name == "background" else "its pictures are no icons"
            raise InputError(f"--metrics {name}: not for this benchmark, {why}; give {', '.join(USUAL[layout])}")

    @cache
    def network(of) -> torch.nn.Module | clip.Clip:
        file = {clip: published.CLIP, dino: published.DINO, lpips: published.SQUEEZENET}[of]
        place = published.find_published(file, folder)
        try:
            loaded = of.load(folder, device)
        except (*DAMAGED, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{place}: not the weights that it should hold, or damaged ({reason})") from None
        weights[file.file] = hub.sha256(place)
        return loaded

    @cache
    def judge() -> icons.Classifier:
        loaded = icons.load_classifier(classifier)
        weights["classifier"] = hub.sha256(classifier / "model.safetensors")
        return loaded

    def measure(name: str) -> Callable[[Case], Values]:
        if name in ("clip", "clip-acc"):
            return partial(_clip if name == "clip" else _clip_acc, network(clip))
        if name == "structure":
            vit = network(dino)
            return lambda case: {"structure": dino.structure_distance(vit, case.before, case.after)}
        if name == "background":
            return partial(_background, network(lpips))
        if name in ("icons", "leakage"):
            return partial(_icons if name == "icons" else _leakage, judge())
        return _edges if name == "edges" else _iou

    for name in dict.fromkeys(names):
        measures[name] = measure(name)
    return Metrics(measures, weights)


def _clip(network: clip.Clip, case: Case) -> Values:
    return {"clip": network.score(case.after, case.pair.prompt).item()}


def _clip_acc(network: clip.Clip, case: Case) -> Values:
    if not case.pair.source:  # nothing that it could be closer to
        return {}
    return {"clip_acc": float(network.closer(case.after, case.pair.prompt, case.pair.source))}


def _background(network: torch.nn.Module, case: Case) -> Values:
    height, width = case.before.shape[2:]
    own = case.pair.mask is not None
    mask = torch.from_numpy(case.pair.mask_at(width, height))[None] if own else icons.foreground(case.before)
    if mask.all():
        return {}
    return {"background": lpips.background_lpips(network, case.before, case.after, mask)}


def _icons(judge: icons.Classifier, case: Case) -> Values:
    sure = judge.sure_of(case.after)
    asked = dict(zip(icons.ASPECTS, case.pair.asked, strict=True))
    right = {aspect: float(max(sure[aspect], key=sure[aspect].get) == word) for aspect, word in asked.items()}
    probability = sum(sure[aspect].get(word, 0.0) for aspect, word in asked.items()) / len(asked)
    return right | {"fidelity": sum(right.values()) / len(right), "probability": probability}


def _leakage(judge: icons.Classifier, case: Case) -> Values:
    """What of the guidance's appearance is left: its style, where another one was asked for, and its colours."""
    sure = judge.sure_of(case.after)["style"]
    style = next((style for style in sure if f" {style} " in case.pair.source), None)
    seen = {}
    if style is not None and style != case.pair.asked[0]:
        seen["style_left"] = sure[style]
    masks = [icons.foreground(x) for x in (case.before, case.after)]
    if all(mask.any() for mask in masks):
        before, after = (x[0][:, m[0]].mean(dim=1) for x, m in zip((case.before, case.after), masks, strict=True))
        seen["colour_left"] = 1 - (before - after).norm().item() / 12**0.5  # 12 ** 0.5: from black to white
    return seen


def _edges(case: Case) -> Values:
    return {"edges": edge_correlation(case.before, case.after)}


def _iou(case: Case) -> Values:
    return {"iou": icons.iou(icons.foreground(case.after), icons.foreground(case.before)).item()}
