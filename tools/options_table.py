"""Makes docs/options.md, the table of all options, from the fields of the settings classes.

python -m tools.options_table
"""

import sys
from pathlib import Path

from minipnp.app.options import has_default, shown
from minipnp.guidance import Inversion
from minipnp.methods.original import Taking
from minipnp.methods.registry import METHODS
from minipnp.options import Option, options_of
from minipnp.pipeline import Sampling

PLACE = Path(__file__).parent.parent / "docs" / "options.md"
HEAD = """# The options of the methods

Made by `python -m tools.options_table` from the fields of the settings classes, where each option is stated once. In
Python an option is the field of that name; where the shell's name is another, the field's stands behind it. An option
without a default is left out, or follows the model or the picture, as its line says.
"""


def table(settings: type) -> str:
    rows = ["| option | default | give | what it is |", "|---|---|---|---|", *map(row, options_of(settings))]
    return "\n".join(rows)


def row(o: Option) -> str:
    flag = f"`{o.flag}`"
    if o.flag.removeprefix("--").replace("-", "_") != o.field:
        flag += f" (`{o.field}`)"
    default = shown(o.form, o.default) if has_default(o) else ""
    return f"| {flag} | {default} | {o.form.says} | {o.help} |".replace("||", "| |")


def page() -> str:
    parts = [HEAD]
    for method in METHODS.values():
        parts.append(f"## `--method {method.name}`, `{method.settings.__name__}`\n\n{method.what}.\n")
        parts.append(table(method.settings) + "\n")
    parts.append(f"## How the original is taken, `Taking`\n\n{table(Taking)}\n")
    parts.append(f"## How a picture is inverted, `Inversion`\n\n{table(Inversion)}\n")
    parts.append(f"## `minipnp sample`, `Sampling`\n\n{table(Sampling)}\n")
    return "\n".join(parts)


def main() -> int:
    PLACE.write_text(page(), encoding="utf-8")
    print(PLACE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
