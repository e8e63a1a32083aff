"""`make translate IMG=… PROMPT=…` → minipnp's command line. The Makefile hands its variables on in the environment.

No shell is between them and the program, so a text arrives as it was given.
"""

import os
import shlex
import sys
from collections.abc import Mapping

from minipnp.errors import InputError

OPTIONS = {
    "IMG": "--image",
    "PROMPT": "--prompt",
    "OUT": "--out",
    "MODEL": "--model",
    "NEG": "--negative",
    "SOURCE": "--source",
    "SEED": "--seed",
    "STEPS": "--steps",
}
MEANT_FOR = {
    "translate": set(OPTIONS),
    "sample": {"PROMPT", "OUT", "MODEL", "NEG", "SEED", "STEPS"},
    "compare": set(OPTIONS),
    "evaluate": {"OUT", "MODEL", "STEPS"},
    "weights": set(),
    "verify": {"MODEL"},
}


def arguments(command: str, given: Mapping[str, str]) -> list[str]:
    """The program's arguments. An empty variable counts as not given, but for PROMPT and NEG: no words are a text too.

    Raises InputError for a variable that this command has no use for, and for ARGS with a quote left open.
    """
    named = {name: given[name] for name in OPTIONS if given.get(name) or (name in given and name in ("PROMPT", "NEG"))}
    for name in named:
        if name not in MEANT_FOR[command]:
            raise InputError(f"make {command} has no use for {name}={named[name]!r}: leave it out, or unset it")
    try:
        more = shlex.split(given.get("ARGS", ""))
    except ValueError as error:
        raise InputError(f"ARGS={given['ARGS']!r} cannot be split into options: {error}") from None
    # `--prompt=…` in one piece: a text with a leading dash would be taken for an option.
    return [command, *(f"{OPTIONS[name]}={value}" for name, value in named.items()), *more]


def main() -> int:
    try:
        argv = arguments(sys.argv[1], os.environ)
    except InputError as error:
        print(f"minipnp: {error}", file=sys.stderr)
        return 2
    if argv[0] == "verify":
        from tools.verify.verify import main as program

        argv = argv[1:]
    else:
        from minipnp.app.cli import main as program
    return program(argv)


if __name__ == "__main__":
    sys.exit(main())
