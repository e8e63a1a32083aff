"""README's figures are those of the files: line counts of the reading order, and commands that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \d+ \| \[(\S+)\]\((\S+)\) \| (\d+) \|", README, re.MULTILINE)


def test_the_reading_order_counts_right():
    counted = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for _, path, _ in ROWS}
    assert {path: int(lines) for _, path, lines in ROWS} == counted
    (total,) = re.findall(r"\*\*the core\*\* \| \*\*(\d+)\*\*", README)
    assert int(total) == sum(counted.values()) <= 1500


def test_the_core_imports_nothing_outside_it():
    core = {Path(path).stem for _, path, _ in ROWS}
    for _, path, _ in ROWS:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("minipnp"):
                inside = node.module.removeprefix("minipnp").lstrip(".")
                reads = {"weights.py": "loading", "config.py": "settings"}.get(Path(path).name)  # published files
                assert inside in core or inside == reads, (path, node.module)
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            modules = [*names, getattr(node, "module", None) or ""]
            assert not any(name.split(".")[0] in ("diffusers", "transformers") for name in modules), path


def test_targets_and_files_named_in_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)", README))
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links), links
