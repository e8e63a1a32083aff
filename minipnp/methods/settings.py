"""What a translation is set to, whatever its guidance, its texts and its model."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from inspect import signature

from minipnp.errors import InputError
from minipnp.guidance import Inversion
from minipnp.pipeline import draw, guidance_from_prompt, keeps_features
from minipnp.pnp import PnP
from minipnp.slots import Layer, Tap, decoder


def default(function, name: str):
    return signature(function).parameters[name].default


@dataclass(frozen=True)
class Settings:
    """What a translation does, whatever its guidance, its texts and its model.

    vae_sampled: x_0 is drawn from the VAE's posterior, and is not its mean. both: see `guidance_from_text`.
    source_is_negative: the source prompt takes the negative prompt's place where that is not given.
    random_start: a seed for an x_T that is not the guidance's. size: short side in pixels; None is the model's own.
    """

    pnp: PnP = PnP()
    inversion: Inversion = Inversion()
    square: bool = False
    size: int | None = None
    seed: int = default(draw, "seed")
    source_scale: float = default(guidance_from_prompt, "scale")
    random_start: int | None = None
    vae_sampled: bool = False
    both: bool = False
    source_is_negative: bool = False

    @classmethod
    def like(cls, codebase: str, generated: bool) -> "Settings":
        """The defaults: "minipnp"'s own, or those of the authors' codebases, "pnp-diffusers" and "plug-and-play"."""
        if codebase == "minipnp":
            return cls()
        if codebase == "pnp-diffusers":
            return cls(inversion=Inversion(steps=999, at="next", iterations=0))
        scale, alpha = (7.5, 0.75) if generated else (10.0, 1.0)
        return cls(
            PnP(inclusive=True, scale=scale, alpha=alpha, alpha_schedule="linear"),
            Inversion(steps=999, at="current", iterations=0, resample=999),
            square=True, vae_sampled=True, both=True, source_is_negative=True,
        )  # fmt: skip

    def with_options(self, given: dict) -> "Settings":
        """The same with other values, by their names in `options`. Raises InputError for one that cannot be."""

        given = {name: decoder_layers(value) if name.endswith("_layers") else value for name, value in given.items()}

        def changed(part, names: dict[str, str]):
            return replace(part, **{field: given[name] for name, field in names.items() if name in given})

        return changed(replace(self, **{part: changed(getattr(self, part), _PARTS[part]) for part in _PARTS}), _OWN)

    def options(self) -> dict[str, object]:
        """All of it, flat, as JSON has it."""
        parts = {name: getattr(getattr(self, part), field) for part in _PARTS for name, field in _PARTS[part].items()}
        parts["inversion_steps"] = self.inversion.steps_for(self.pnp.steps)
        own = {name: getattr(self, name) for name in _OWN}
        return {name: _span(value) if isinstance(value, tuple) else value for name, value in (parts | own).items()}

    @property
    def keeps(self) -> bool:
        return keeps_features(self.inversion, self.pnp.steps)

    def evaluations(
        self, generated: bool, prompts: int, negative: bool, reconstruct: bool, kept: PnP | str | None = "its own"
    ) -> dict[str, int]:
        """How often the network is evaluated, by phase; a pass over n texts counts as n, checks are not counted.

        kept: the edit whose features come with the guidance, or None; by default this one's, where they can.
        """
        if kept == "its own":
            kept = self.pnp if self.keeps and not generated else None
        s, there = self.pnp, kept.taps() if kept else {}
        if generated:
            due = {"guidance": s.steps * (1 if self.source_scale in (0, 1) else 2)}
        else:
            up, down = self.inversion.schedule(s.steps)
            last = bool(there) and not down  # the one level at which only features are taken
            first = {"next": len(up), "current": len(up) + last, "last": 1}[self.inversion.at]
            due = {"inversion": first + len(up) * self.inversion.iterations}
            due |= {"resampling": len(down)} if down else {}
        due |= {"reconstruction": s.steps} if reconstruct else {}
        passes = sum(not _covers(there.get(t), tap) for t, tap in s.taps().items())
        alphas = s.alphas() if negative else [1.0] * s.steps
        weights = [(s.scale, (1 - s.scale) * alpha, (1 - s.scale) * (1 - alpha)) for alpha in alphas]
        return due | {"translation": passes + prompts * sum(w != 0 for branches in weights for w in branches)}


def _covers(kept: Tap | None, wanted: Tap) -> bool:
    return kept is not None and {*kept.f} >= {*wanted.f} and {*kept.q} >= {*wanted.q}


INVERSION = {"inversion_steps": "steps", "inversion_at": "at", "fixed_point": "iterations", "resample": "resample"}


_PARTS = {"pnp": {name: name for name in PnP.__dataclass_fields__}, "inversion": INVERSION}


_OWN = {name: name for name in Settings.__dataclass_fields__ if name not in _PARTS}


def inversion_of(given: dict) -> Inversion:
    """As options of the command line say."""
    return Inversion(**{field: given[name] for name, field in INVERSION.items() if name in given})


def decoder_layers(rows: Iterable[int]) -> tuple[Layer, ...]:
    try:
        return decoder(*rows)
    except ValueError as error:
        raise InputError(str(error)) from None


def _span(layers: tuple[Layer, ...]) -> str:
    rows = sorted(layer.row for layer in layers)
    if len(rows) > 1 and rows == list(range(rows[0], rows[-1] + 1)):
        return f"{rows[0]}-{rows[-1]}"
    return ",".join(map(str, rows)) or "none"


DEFAULTS = {
    "translate": Settings().options(),
    "sample": {name: default(draw, name) for name in ("seed", "steps", "scale", "negative", "height", "width")},
}
