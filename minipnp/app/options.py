"""How a command's options are made: from the fields of the settings classes, and a few that several commands share."""

import argparse
import difflib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from minipnp.errors import InputError
from minipnp.guidance import Inversion
from minipnp.methods.original import Taking
from minipnp.methods.registry import METHODS
from minipnp.options import NAME, PLACE, SWITCH, Form, Option, choice, options_of


class Parser(argparse.ArgumentParser):
    """Options of one command. What is wrong with them ends in an InputError of one line that says what to do."""

    def __init__(self, **how):
        super().__init__(allow_abbrev=False, formatter_class=Help, add_help=False, **how)

    def error(self, message: str):
        raise InputError(f"{message} (`{self.prog} --help` lists the options)")

    def given(self, argv: Sequence[str]) -> dict[str, object]:
        """The options that were given, by name."""
        found, rest = self.parse_known_intermixed_args(argv)
        if rest:
            self.error(self._unknown(rest[0]))
        return {name: value for name, value in vars(found).items() if value is not None and value != []}

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} is one argument too many"
        flag = argument.partition("=")[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(flag.lower(), known, n=1)
        return f"there is no option {flag}" + (f", did you mean {near[0]}?" if near else "")


class Once(argparse.Action):
    """An option that may be given once: a second value would take the place of the first unseen."""

    def __call__(self, parser, namespace, value, option_string=None):
        if (before := getattr(namespace, self.dest)) is not None:
            raise argparse.ArgumentError(self, f"{shown_value(before)} and {shown_value(value)}: give one of the two")
        setattr(namespace, self.dest, value)


class Switch(argparse.BooleanOptionalAction):
    """--x and --no-x, of which one may be given."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest)
        super().__call__(parser, namespace, values, option_string)
        if before not in (None, getattr(namespace, self.dest)):
            raise argparse.ArgumentError(self, "give one of the two")


def shown_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class Help(argparse.RawDescriptionHelpFormatter):
    """Help whose options stand in a column wide enough for most of them."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=110)


def reader(form: Form) -> Callable[[str], object]:
    """From a text of the command line to a value of the form; what has another form is told which forms there are."""

    def read(text: str) -> object:
        try:
            value = form.read(text)
            return form.take([value])[0] if form.repeats else form.take(value)
        except (ValueError, TypeError):
            raise argparse.ArgumentTypeError(f"{text!r}: give {form.says}") from None

    return read


def add(group, flag: str, help: str, form: Form, dest: str | None = None) -> None:
    """Adds an option whose value has this form."""
    dest = dest or flag.removeprefix("--").replace("-", "_")
    if form.switch:
        group.add_argument(flag, dest=dest, help=help, action=Switch, default=None)
        return
    metavar = "{" + ",".join(form.choices) + "}" if form.choices else form.metavar
    action = "append" if form.repeats else Once
    group.add_argument(flag, dest=dest, help=help, type=reader(form), metavar=metavar, action=action)


def has_default(o: Option) -> bool:
    """Whether help says what the option is where it is not given."""
    return not (o.default is None or o.default is False or o.default == ())


def shown(form: Form, value: object) -> str:
    return shown_value(form.write(value))


def add_option(group, o: Option) -> None:
    """Adds an option of a settings class; its default, which the class has, is shown."""
    help = o.help
    if has_default(o):
        help += f" (default: {shown(o.form, o.default)})"
    add(group, o.flag, help.replace("%", "%%"), o.form, o.name)


def add_options(group, settings: type, names: Iterable[str] | None = None) -> None:
    """Adds the options of a settings class, or of them those with these names."""
    for o in options_of(settings):
        if names is None or o.name in names:
            add_option(group, o)


def by_method() -> dict[str, list[tuple[str, Option]]]:
    """The methods' options by name, each with the methods that have it."""
    found: dict[str, list[tuple[str, Option]]] = {}
    for method in METHODS.values():
        for o in options_of(method.settings):
            found.setdefault(o.name, []).append((method.name, o))
    return found


def add_shared_option(group, having: list[tuple[str, Option]], also: bool = True) -> None:
    """Adds an option that several methods have, with the default of each."""
    (_, o), *others = having
    help = o.help + ("; repeat for several" if o.form.repeats else "")
    if others and also:
        help += f"; also of {', '.join(name for name, _ in others)}"
    defaults: dict[str, list[str]] = {}
    for name, option in having:
        if has_default(option):
            defaults.setdefault(shown(option.form, option.default), []).append(name)
    if len(defaults) == 1:
        help += f" (default: {next(iter(defaults))})"
    elif defaults:
        usual = max(defaults, key=lambda value: len(defaults[value]))
        rest = [f"{', '.join(names)} {value}" for value, names in defaults.items() if value != usual]
        help += f" (default: {usual}; {'; '.join(rest)})"
    add(group, o.flag, help.replace("%", "%%"), o.form, o.name)


def flag_of(name: str) -> str:
    """The flag of an option, by its name."""
    having = by_method().get(name)
    return having[0][1].flag if having else "--" + name.lower().replace("_", "-")


def add_method_options(here: Parser, but: Iterable[str] = ()) -> None:
    """Adds a group for each method with its own options; those that stand elsewhere already are left out."""
    options = by_method()
    done = {*but}
    for method in METHODS.values():
        new = [o.name for o in options_of(method.settings) if o.name not in done]
        if new:
            group = here.add_argument_group(f"--method {method.name}", f"{method.what}.")
            for name in new:
                add_shared_option(group, options[name])
            done |= {*new}


INVERSION = tuple(o.name for o in options_of(Inversion))
TAKING = tuple(o.name for o in options_of(Taking))


def add_inversion_options(here: Parser) -> None:
    add_options(here.add_argument_group("inversion of a picture"), Inversion)


def add_taking_options(group, *names: str) -> None:
    add_options(group, Taking, names)


def add_model_options(here: Parser) -> None:
    model = here.add_argument_group("model")
    add(model, "--model", "bundled, sd15, a file, a folder, a hub id (default: sd15 if there, or bundled)", MODEL)
    add(model, "--vae", "take the VAE from this file or folder", PLACE)
    add(model, "--prediction-type", "what the UNet predicts, where its files do not say", choice("epsilon", "v"))
    add(model, "--ema", "take the averaged weights of a single file", SWITCH)
    add(model, "--device", "cpu, cuda, cuda:N or mps (default: the best there is)", NAME)
    add(model, "--dtype", "float32, float16 or bfloat16 (default: float16 on CUDA, else float32)", NAME)
    model.add_argument("--low-memory", help="one network at a time on the device", action="store_true", default=None)
    model.add_argument("--compile", help="torch.compile: minutes to begin with", action="store_true", default=None)
    rest = here.add_argument_group("the rest")
    rest.add_argument("--quiet", help="no progress, only notes and errors", action="store_true", default=None)
    rest.add_argument("-h", "--help", help="show this help and exit", action="help")


def add_pictures(here: Parser, help: str, many: bool = False) -> None:
    """`--image PATH`, and the same as a positional argument."""
    if many:
        here.add_argument("--image", help=f"{help}; repeat", action="append", type=reader(PLACE), metavar="PATH")
        here.add_argument("image_", help="short for --image", nargs="*", type=reader(PLACE), metavar="PATH")
    else:
        here.add_argument("--image", help=help, type=reader(PLACE), metavar="PATH", action=Once)
        here.add_argument("image_", help="short for --image", nargs="?", type=reader(PLACE), metavar="PATH")


def pictures_of(given: dict, many: bool = False) -> None:
    """Puts the pictures that were given either way under the name `image`. InputError: one way too many."""
    short = given.pop("image_", None)
    if short is None:
        return
    if many:
        given["image"] = [*given.get("image", []), *short]
    elif "image" in given:
        raise InputError(f"--image {given['image']} and {short}: give one of the two")
    else:
        given["image"] = short


# ---------------------------------------------------------------------------------------------------------------------
# Forms that only the command line has.


def _point(text: str) -> tuple[float, float]:
    x, y = map(float, text.split(","))
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError
    return x, y


def _points(text: str) -> list[tuple[float, float]]:
    return [_point(part) for part in text.split()]


def _times(text: str) -> list[int]:
    return [int(t) for t in text.split(",")]


def same(value: object) -> object:
    return value


def words(*names: str) -> Form:
    """Some of these names, with commas between them."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        if names and not {*found} <= {*names}:
            raise ValueError
        return found

    says = f"some of {', '.join(names)}, with commas between them" if names else "names with commas between them"
    return Form(says, same, read, metavar="NAME,…")


MODEL = replace(NAME, read=os.path.expanduser)  # it may be a path
POINTS = Form("places X,Y in pixels, such as '120,64 30,200'", same, _points, metavar="'X,Y …'")
TIMES = Form("timesteps with commas between them, such as 981,541", same, _times, metavar="T,…")
