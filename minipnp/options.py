"""An option: a field of a settings class, at which all that there is to say of it stands once.

    @dataclass(frozen=True)
    class SDEdit(Options):
        strength: float = option(0.5, "share of the steps that run, the cleanest ones", SHARE)

Its name, default, help, range and form are read from the field: the class checks its values by them, and the command
line, its help, run.json, the keys of an evaluation and the table of options in the docs are made of them.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, TypeVar

from minipnp.ddim import MOST, timesteps
from minipnp.errors import InputError
from minipnp.slots import Layer, decoder


@dataclass(frozen=True)
class Form:
    """Which values an option takes.

    says: in words, after "give". take: a value given in Python → the value that the class holds; ValueError or
    TypeError: it is none. read: a text of the command line → a value for `take`. write: a value → as JSON holds it.
    metavar: what help shows. repeats: the option may be given several times, and its value is all of them. files: the
    files that a value names, whose contents decide on the result too.
    """

    says: str
    take: Callable[[Any], Any]
    read: Callable[[str], Any] = str
    write: Callable[[Any], Any] = lambda value: value
    metavar: str = "X"
    repeats: bool = False
    choices: tuple[str, ...] = ()
    switch: bool = False
    files: Callable[[Any], list[str]] = lambda value: []


@dataclass(frozen=True)
class Option:
    """One option. field: its name in the class; name: in records and in Python; flag: in the shell."""

    field: str
    name: str
    flag: str
    help: str
    form: Form
    default: Any

    def take(self, value: Any) -> Any:
        """The value as the class holds it. Raises InputError, which says what to give."""
        if value is None and self.default is None:
            return None
        try:
            return self.form.take(value)
        except (ValueError, TypeError, OverflowError):
            raise InputError(f"{self.name} = {value!r}: give {self.form.says}") from None


def option(
    default: Any, help: str, form: Form, name: str | None = None, flag: str | None = None, kw_only: bool = False
) -> Any:
    """A field that is an option. name, flag: where they differ from the field's own name."""
    return field(default=default, kw_only=kw_only, metadata={"option": (help, form, name, flag)})


Settings = TypeVar("Settings", bound="Options")


class Options:
    """The base of every settings class, which is a frozen dataclass. Raises InputError for a value out of range."""

    def __post_init__(self):
        for o in options_of(type(self)):
            object.__setattr__(self, o.field, o.take(getattr(self, o.field)))

    @classmethod
    def given(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
        """The settings with these values, by the options' names; names of other classes are passed over."""
        return cls(**{o.field: values[o.name] for o in options_of(cls) if o.name in values})

    def with_(self: Settings, values: Mapping[str, Any]) -> Settings:
        """These settings with other values, by the options' names; names of other classes are passed over."""
        return replace(self, **{o.field: values[o.name] for o in options_of(type(self)) if o.name in values})

    def record(self) -> dict[str, Any]:
        """All values by the options' names, as JSON holds them."""
        values = {o.name: (o.form, getattr(self, o.field)) for o in options_of(type(self))}
        return {name: None if value is None else form.write(value) for name, (form, value) in values.items()}

    def files(self) -> dict[str, list[str]]:
        """The files that a value names, whose contents decide on the result: by the names of such options."""
        values = {o.name: (o.form, getattr(self, o.field)) for o in options_of(type(self))}
        named = {name: form.files(value) for name, (form, value) in values.items() if value is not None}
        return {name: files for name, files in named.items() if files}


@cache
def options_of(settings: type) -> tuple[Option, ...]:
    """The options of a settings class, in the order of its fields."""
    found = []
    for f in fields(settings):
        if "option" in f.metadata:
            help, form, name, flag = f.metadata["option"]
            name = name or f.name
            found.append(Option(f.name, name, flag or f"--{name.lower().replace('_', '-')}", help, form, f.default))
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# Forms.


def number(low: float = -math.inf, high: float = math.inf, says: str = "a number") -> Form:
    """A finite number of at least `low` and at most `high`."""

    def take(value: float) -> float:
        if isinstance(value, bool) or not low <= value <= high or not math.isfinite(value):
            raise ValueError
        return value

    return Form(says, take, float)


def whole(low: int, high: int | None = None, metavar: str = "N") -> Form:
    """A whole number of at least `low` and at most `high`."""

    def take(value: int) -> int:
        if isinstance(value, bool) or int(value) != value or value < low or (high is not None and value > high):
            raise ValueError
        return int(value)

    return Form(
        f"a whole number from {low} to {high}" if high else f"a whole number, {low} or more", take, int, metavar=metavar
    )


def choice(*names: str) -> Form:
    """One of some words."""

    def take(value: str) -> str:
        if value not in names:
            raise ValueError
        return value

    return Form(f"one of {', '.join(names)}", take, choices=names)


def layers_of_text(text: str) -> tuple[Layer, ...]:
    """4 · 4-8 · 4,6 · none → layers of the decoder."""
    if text == "none":
        return ()
    ends = [span.partition("-") for span in text.split(",")]
    spans = [range(int(first), int(last or first) + 1) for first, _, last in ends]
    if not all(0 < len(span) <= 12 for span in spans):
        raise ValueError
    return decoder(*sorted({row for span in spans for row in span}))


def text_of_layers(layers: Iterable[Layer]) -> str:
    """The inverse of `layers_of_text`."""
    rows = sorted(layer.row for layer in layers)
    if len(rows) > 1 and rows == list(range(rows[0], rows[-1] + 1)):
        return f"{rows[0]}-{rows[-1]}"
    return ",".join(map(str, rows)) or "none"


def _layers(value: str | Iterable[Layer | int]) -> tuple[Layer, ...]:
    if isinstance(value, str):
        return layers_of_text(value)
    return tuple(layer if isinstance(layer, Layer) else decoder(layer)[0] for layer in value)


def _switch(value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(values: str | Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(map(_text, values))


def amount_of_text(text: str) -> tuple[str, float]:
    """blue=2"""
    word, equals, value = text.rpartition("=")
    if not word or not equals:
        raise ValueError
    return word, float(value)


def _amounts(values: Mapping[str, float] | Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    pairs = tuple(values.items()) if isinstance(values, Mapping) else tuple(map(tuple, values))
    if not all(math.isfinite(value) for _, value in pairs):
        raise ValueError
    return pairs


NUMBER = number()
POSITIVE = number(0.0, says="a number of 0 or more")
SHARE = number(0.0, 1.0, says="a share from 0 to 1")
STEPS = whole(1, 999)
COUNT = whole(0)
SEED = replace(whole(0, 2**64 - 1, metavar="SEED"), says="a whole number from 0 to 2^64 - 1")
LAYERS = Form(
    "decoder layers from 0 to 11, such as 4 or 4-8 or 4,6 or none", _layers, write=text_of_layers, metavar="LAYERS"
)
SWITCH = Form("True or False", _switch, switch=True)
TEXT = Form("a text", _text, metavar="TEXT")
WORD = Form("a word, or WORD=WORD for the source's and the prompt's", _text, metavar="WORD[=WORD]")
WORDS = Form("words, each WORD or WORD=WORD", _texts, write=list, metavar="WORD[=WORD]", repeats=True)
AMOUNTS = Form("WORD=X", _amounts, amount_of_text, write=dict, metavar="WORD=X", repeats=True)
TEXTS = Form("a text", _texts, write=list, metavar="TEXT", repeats=True)
NAME = replace(TEXT, says="a name", metavar="NAME")
PLACE = replace(TEXT, says="a path", read=os.path.expanduser, metavar="PATH")  # ~ is the home in every one
PATH = replace(PLACE, files=lambda value: [value])  # of a file whose contents decide on the result


@dataclass(frozen=True)
class Stepped(Options):
    """The settings that every edit and every sampling has: how many steps, and at which levels of noise they are."""

    steps: int = option(50, "steps of the edit", STEPS)
    spacing: str = option(
        "leading",
        "levels of the steps: leading, as published (981, 961, … of 50), or trailing, from pure noise (999, 979, …)",
        choice(*MOST),
        name="timesteps",
        kw_only=True,
    )

    def __post_init__(self):
        super().__post_init__()
        timesteps(self.steps, self.spacing)

    @property
    def levels(self) -> list[int]:
        """The levels, noisiest first."""
        return timesteps(self.steps, self.spacing)


def scale_option(default: float) -> Any:
    """The guidance scale, which every method has."""
    return option(default, "guidance scale w of Eq. (5)", NUMBER)
