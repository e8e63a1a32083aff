"""Plug-and-Play as one of the methods: its algorithm is the core's, in pnp.py."""

from collections.abc import Sequence

from minipnp.guidance import SOURCE_SCALE, Inversion
from minipnp.methods.method import Method, Steps
from minipnp.methods.original import Original
from minipnp.pipeline import translation
from minipnp.pnp import PnP
from minipnp.slots import Tap


def _edit_together(o: Original, prompts: Sequence[str], negative: str | None, s: PnP) -> Steps:
    return translation(o.sd, o.guidance(s), prompts, negative, s)


def _edit(o: Original, prompt: str, negative: str | None, s: PnP) -> Steps:
    return _edit_together(o, [prompt], negative, s)


METHOD = Method(
    "pnp",
    "Plug-and-Play: layout by features and self-attention",
    PnP,
    _edit,
    together=_edit_together,
    guidance=lambda o, s: o.guidance(s),
    source_scale=SOURCE_SCALE,
)


def evaluations(
    s: PnP,
    inversion: Inversion | None,
    prompts: int,
    negative: bool = False,
    reconstruct: bool = False,
    kept: PnP | None = None,
    source_scale: float = SOURCE_SCALE,
) -> dict[str, int]:
    """How often ε_θ is evaluated for an edit, by phase; a pass over n texts counts as n.

    inversion: of a picture; None: the original is generated. kept: the edit whose features come with the guidance.
    The residuals that `reconstruct` measures are not counted.
    """
    there = kept.taps() if kept else {}
    due = {}
    if inversion is None:
        due["guidance"] = s.steps * (1 if source_scale in (0, 1) else 2)
    else:
        up, down = inversion.schedule(s)
        last = bool(there) and not down  # the one level at which only features are taken
        first = {"next": len(up), "current": len(up) + last, "last": 1}[inversion.at]
        due["inversion"] = first + len(up) * inversion.iterations
        if down:
            due["resampling"] = len(down)
    if reconstruct:
        due["reconstruction"] = s.steps
    passes = sum(not _covers(there.get(t), tap) for t, tap in s.taps().items())
    alphas = s.alphas() if negative else [1.0] * s.steps
    weights = [(s.scale, (1 - s.scale) * alpha, (1 - s.scale) * (1 - alpha)) for alpha in alphas]
    due["translation"] = passes + prompts * sum(w != 0 for branches in weights for w in branches)
    return due


def _covers(kept: Tap | None, wanted: Tap) -> bool:
    return kept is not None and {*kept.f} >= {*wanted.f} and {*kept.q} >= {*wanted.q}
