"""README names what there is: the files of the reading order, targets, and links."""

import re
from pathlib import Path

from tools import options_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \d+ \| \[(\S+)\]\((\S+)\) \|", README, re.MULTILINE)


def test_the_reading_order_has_every_file_of_the_core():
    core = {path.name for path in (ROOT / "minipnp").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name, _ in ROWS} == core and all((ROOT / path).is_file() for _, path in ROWS)


def test_targets_and_files_named_in_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)", README))
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links), links


def test_the_table_of_options_is_that_of_the_code():
    assert options_table.PLACE.read_text(encoding="utf-8") == options_table.page()
