"""The command line: `python -m minipnp COMMAND`: which command runs, and how a run ends."""

import contextlib
import difflib
import sys
from importlib import import_module

from minipnp import __version__
from minipnp.errors import InputError, explain

COMMANDS = {  # name: (the file it stands in, what it does)
    "translate": ("translate", "make pictures that keep a picture's layout and follow a text"),
    "sample": ("sample", "make pictures from text alone"),
    "invert": ("invert", "keep a picture's guidance in a file, for any number of translations"),
    "compare": ("compare", "run several methods on one picture: a labelled sheet and a table"),
    "evaluate": ("evaluate", "run methods on a benchmark, measure them: a table and a plot"),
    "features": ("features", "show features, self-attention and words of pictures"),
    "correspond": ("correspond", "find places of one picture in another; PCK of annotated pairs"),
    "segment": ("segment", "show parts of pictures"),
    "injection": ("injection", "show what injecting f and A does, as the paper's Fig. 5"),
    "words": ("model_commands", "list what prompts for a small model may say"),
    "weights": ("model_commands", "fetch Stable Diffusion 1.5 into weights/sd15; size and licence are said first"),
}
HELP = """usage: minipnp COMMAND [options]

Plug-and-Play Diffusion Features: a picture's layout, a text's appearance.

commands:
{commands}

`minipnp COMMAND --help` lists the options of a command. Try:

  minipnp translate
  minipnp translate horse.png --prompt 'a flat icon of a cow on a blue background'
"""


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0; 2 for bad input, which one line explains; 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    with contextlib.suppress(AttributeError):  # a notebook's stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold anything
    try:
        return run(argv)
    except KeyboardInterrupt:
        said = "interrupted"
        code = 130
    except Exception as error:
        if (reason := explain(error)) is None:
            raise
        said = f"error: {reason}"
        code = 2
    print(f"minipnp: {said}", file=sys.stderr)
    return code


def run(argv: list[str]) -> int:
    """Hands the options to their command. Its file needs torch, so only the file of that command is imported."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items())), end="")
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f", did you mean {near[0]}?" if near else ""
        raise InputError(f"there is no command {name!r}{meant} (`minipnp --help` lists them)")
    file, what = COMMANDS[name]
    module = import_module(f"minipnp.app.{file}")
    from minipnp.app.options import Parser

    parser = Parser(prog=f"minipnp {name}", usage=f"minipnp {name} [options]", description=f"{name}: {what}.")
    getattr(module, f"{name}_options")(parser)
    return getattr(module, f"{name}_command")(parser.given(rest), argv)
