"""Options that would change nothing where they are given: the table of `translate`, and the loop for any such table."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minipnp.app.options import INVERSION, by_method, flag_of
from minipnp.errors import InputError
from minipnp.methods.method import Method
from minipnp.options import Options, options_of


@dataclass(frozen=True)
class Asked:
    """What `translate` is asked for. origin: of the original, "picture", "text" or "file"."""

    given: Mapping[str, object]
    method: Method
    s: Options
    origin: str
    negative: str | None

    def has(self, name: str) -> bool:
        return bool(getattr(self.s, name, None))


OF_A_PICTURE = (*INVERSION, "reconstruct", "square", "vae_sampled")
REGULARISED = ("lambda_ac", "lambda_kl", "gain")
SETTLED = ("image", "size", "square", "vae_sampled", *INVERSION)

Row = tuple[tuple[str, ...], Callable[[Any], bool], str]  # options, when they are useless, why

USELESS: tuple[Row, ...] = (
    (SETTLED, lambda a: a.origin == "file", "settled by --guidance"),
    (("seed",), lambda a: a.origin == "file" and not a.method.draws, "settled by --guidance"),
    (("source_scale", "both"), lambda a: a.origin == "file", "settled by --guidance"),
    (("source_scale", "both"), lambda a: a.origin == "picture", "the guidance is an --image here"),
    (OF_A_PICTURE, lambda a: a.origin == "text", "the guidance is generated here, not an --image"),
    (
        ("source",),
        lambda a: a.origin == "picture" and not a.method.reads_source(a.s),
        "the guidance is an --image here",
    ),
    (("source",), lambda a: a.origin == "file" and not a.method.reads_source(a.s), "the method does not read it"),
    (("both",), lambda a: not a.method.under_both, "the method takes features under one text"),
    ((*INVERSION, "reconstruct"), lambda a: a.method.guidance is None, "the method does not invert"),
    (INVERSION, lambda a: a.method.own_inversion, "the method inverts in its own way"),
    (REGULARISED, lambda a: a.origin == "text", "a generated picture is not inverted"),
    (
        ("negative",),
        lambda a: a.method.own_inversion and a.origin != "text",
        "the method's inversion is without guidance",
    ),
    (("save_direction_to",), lambda a: a.has("direction_file"), "--direction is a saved one"),
    (("blend_threshold", "blend_start"), lambda a: not a.has("blend"), "it is that of --blend"),
    (("threshold",), lambda a: not a.has("word"), "it is that of --word"),
    (
        ("alpha", "alpha_schedule"),
        lambda a: a.negative is None,
        "it weighs the empty prompt against a negative one: give --negative too",
    ),
    (("alpha_schedule",), lambda a: not a.has("alpha"), "--alpha is 0: give --alpha too"),
    (("like",), lambda a: a.method.name != "pnp", "it sets the defaults of Plug-and-Play only"),
    (("prompt",), lambda a: not a.method.reads_prompt(a.s), "--change or --direction says what to make"),
)


def refuse_useless(a: Asked) -> None:
    """Raises InputError for an option that would change nothing, and for one of another method."""
    own = {o.name for o in options_of(a.method.settings)}
    for name, having in by_method().items():
        if name in a.given and name not in own:
            methods = ", ".join(method for method, _ in having)
            flag = having[0][1].flag
            raise InputError(f"{flag}: not an option of --method {a.method.name}, but of {methods}: leave it out")
    refuse(USELESS, a.given, a)


def refuse(table: Iterable[Row], given: Mapping[str, object], about: object) -> None:
    """Raises InputError for the first option that would change nothing. about: what the rows are asked about."""
    for names, useless, why in table:
        for name in names:
            if name in given and useless(about):
                raise InputError(f"{flag_of(name)} changes nothing, {why}: leave it out")
