"""The command line: `python -m minipnp COMMAND`: which command runs, and how a run ends."""

import contextlib
import sys
from importlib import import_module

from minipnp.app.options import METHOD_OPTIONS, Default, parser
from minipnp.errors import InputError, explain


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0; 2 for bad input, which one line explains; 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    with contextlib.suppress(AttributeError):  # a notebook's stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold anything
    try:
        options = vars(parser().parse_args(argv))
        name = options.pop("command")
        given = {key: value for key, value in options.items() if not (value is None or isinstance(value, Default))}

        return run(name, given, argv)
    except KeyboardInterrupt:
        said, code = "interrupted", 130
    except Exception as error:
        if (reason := explain(error)) is None:
            raise
        said, code = f"error: {reason}", 2
    print(f"minipnp: {said}", file=sys.stderr)
    return code


def run(name: str, given: dict, argv: list[str]) -> int:
    """Hands the options to the command. Its file needs torch: it is imported when the options are known to be right."""
    method = given.pop("method", "pnp")
    for repeated in given.keys() & {"weight", "share"}:
        given[repeated] = dict(given[repeated])
    if method != "pnp" and name == "translate":
        from minipnp.app.edit import translate_by

        return translate_by(method, given, argv)
    for flag, option, methods, *_ in METHOD_OPTIONS if name == "translate" else ():
        if option in given:
            raise InputError(f"{flag} is an option of {methods}: give --method, or leave it out")
    module = {"weights": "model_commands", "words": "model_commands"}.get(name, name)
    return getattr(import_module(f"minipnp.app.{module}"), f"{name}_command")(given, argv)
