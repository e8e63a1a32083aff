"""The layout of the package: imports run down between its folders, and in no circle within one; one owner per name.

Run as a program it prints the ranks: python tests/test_house.py
"""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minipnp"
# From the ground up. The core, which has the files at the root of the package, imports nothing outside itself.
FLOORS = ("core", "machine", "files", "methods", "see", "measure", "app")
FACE = {"minipnp", "minipnp.__main__"}  # what a caller enters by; they hand names on


def modules(package: Path) -> dict[str, ast.Module]:
    """Of each file, by its dotted name, the syntax tree."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, there: set[str]) -> set[str]:
    """The modules of the package that a file imports: at its head, in its functions, and for its types."""
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            of = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= (of & there) or {node.module}
    return named & there


def floor(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "core"


def up(arrows: dict[str, set[str]]) -> list[str]:
    """The imports from a folder of one that stands above it."""
    rank = {name: i for i, name in enumerate(FLOORS)}
    return [f"{a} → {b}" for a, there in arrows.items() for b in there if rank[floor(b)] > rank[floor(a)]]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: tree for name, tree in modules(PACKAGE).items() if name not in FACE}


@pytest.fixture(scope="module")
def arrows(trees) -> dict[str, set[str]]:
    return {name: imports(tree, {*trees}) for name, tree in trees.items()}


def test_between_folders_imports_run_down(arrows):
    assert not up(arrows)
    assert {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()} == {*FLOORS} - {"core"}


def test_no_files_import_each_other_in_a_circle(arrows):
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_each_public_name_has_one_owner(trees):
    owners = Counter(
        node.name
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {name: n for name, n in owners.items() if n > 1}


def test_the_package_needs_no_reference_implementation(trees):
    for name, tree in trees.items():
        for node in ast.walk(tree):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in named} & {"diffusers", "transformers"}, name


PLANTED = {  # a file, and a line that makes a circle
    "in a function": ("minipnp.layers", "def f():\n    from minipnp.unet import UNet"),
    "for a type": ("minipnp.slots", "if TYPE_CHECKING:\n    import minipnp.unet"),
    "at its head": ("minipnp.files.tensors", "from minipnp.files import hub, loading"),
}


@pytest.mark.parametrize("where", PLANTED)
def test_a_planted_circle_is_seen(trees, where):
    name, line = PLANTED[where]
    planted = {**trees, name: ast.parse(line)}
    with pytest.raises(CycleError):
        TopologicalSorter({m: imports(tree, {*trees}) for m, tree in planted.items()}).prepare()


def test_a_planted_arrow_up_is_seen(trees):
    planted = {"minipnp.unet": imports(ast.parse("from minipnp.files import images"), {*trees})}
    assert up(planted) == ["minipnp.unet → minipnp.files.images"]


def ranks(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The files by rank: each stands above all that it imports."""
    sorter, found = TopologicalSorter(arrows), []
    sorter.prepare()
    while sorter.is_active():
        found.append(sorted(ready := sorter.get_ready()))
        sorter.done(*ready)
    return found


if __name__ == "__main__":
    files = {name: tree for name, tree in modules(PACKAGE).items() if name not in FACE and "." in name}
    for number, rank in enumerate(ranks({name: imports(tree, {*files}) for name, tree in files.items()}), 1):
        print(f"{number:2}  {'  '.join(name.removeprefix('minipnp.') for name in rank)}")
