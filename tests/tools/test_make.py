"""The Makefile: what is given reaches the program unharmed, and the set-up runs once. In a copy with a stub program."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from minipnp.errors import InputError
from tools.from_make import OPTIONS, arguments

ROOT = Path(__file__).resolve().parents[2]

# Stands in for python: venv and pip only leave a trace, everything else is run by the python of these tests.
PYTHON = f"""#!/bin/sh
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >> trace ;;
    "-m pip --version") ;;
    "-m pip "*) echo "$*" >> trace; exit ${{PIP_FAILS:-0}} ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
CLI = """
import json
def main(argv):
    json.dump(argv, open("argv.json", "w"))
    return 0
"""
INSTALL, INSTALL_TEST = "-m pip install -c constraints.txt -e .", "-m pip install -c constraints.txt -e .[test]"

NASTY = [
    "a bronze horse in a museum",
    "it's \"quoted\" 'twice'",
    "$HOME $(HOME) ${PATH} $$ $",
    "$(shell touch canary)",
    "$(eval PY=touch canary;)$(error stop)",
    "`touch canary`",
    "$(touch canary)",
    "'; touch canary; '",
    '" && touch canary || touch canary & "',
    "a | touch canary > canary < canary",
    "# not a comment # at all",
    "50% \\ back\\\\slashes \\n \\",
    "-starts with a dash",
    "--help",
    "--prompt=twice",
    "= := ?= += != ::",
    "a: b\n\ttouch canary",
    "two\nlines\r\nand a tab\t",
    "trailing spaces   ",
    "emoji 🐴 日本語 é",
    "* ? [a-z] ~ {a,b} !! (x) <y>",
    "x" * 20000,
]


@pytest.fixture
def project(tmp_path):
    """A copy of the Makefile and what it needs; the name of its folder has a space and a quote."""
    folder = tmp_path / "it's here"
    for name in (
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
        "constraints.txt",
        "tools/from_make.py",
        "minipnp/errors.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "minipnp" / "app").mkdir()
    (folder / "minipnp" / "app" / "cli.py").write_text(CLI)
    (folder / "tools" / "verify").mkdir()
    (folder / "tools" / "verify" / "verify.py").write_text(CLI)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return folder


def make(folder, *args, cwd=None, **env):
    # These tests may run under make themselves, and with anything in the environment.
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST", *OPTIONS, "ARGS"))}
    command = ["make", *(["-C", str(folder)] if cwd else []), "PYTHON=./python", *args]
    return subprocess.run(command, cwd=cwd or folder, env=ours | env, capture_output=True, text=True)


def argv(folder):
    file = folder / "argv.json"
    said = json.loads(file.read_text())
    file.unlink()
    return said


def trace(folder):
    file = folder / "trace"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("name", ["PROMPT", "IMG"])
def test_a_text_arrives_unharmed(project, name, text):
    for way in ("command line", "environment"):
        if way == "environment":
            done = make(project, "translate", **{name: text})
        else:
            done = make(project, "translate", f"{name}={text}")
        assert done.returncode == 0, done.stderr
        assert argv(project) == ["translate", f"{OPTIONS[name]}={text}"], way
        assert not list(project.rglob("*canary*")), f"something was run ({way})"


def test_leading_spaces_arrive_from_the_environment(project):  # make itself drops them from its command line
    make(project, "translate", PROMPT="  two spaces")
    assert argv(project) == ["translate", "--prompt=  two spaces"]


def test_make_may_prefer_the_environment(project):  # make -e expands no variable either
    assert make(project, "-e", "translate", PROMPT="$(shell touch canary)").returncode == 0
    assert argv(project) == ["translate", "--prompt=$(shell touch canary)"] and not (project / "canary").exists()


def test_all_variables(project):
    given = ["IMG=my horse.png", "PROMPT=a", "OUT=o p", "MODEL=sd15", "NEG=", "SOURCE=s", "SEED=1", "STEPS=20"]
    assert make(project, "translate", *given, "ARGS=--square --tau-f 0.8 --layers '4 5'").returncode == 0
    assert argv(project) == [
        "translate", "--image=my horse.png", "--prompt=a", "--out=o p", "--model=sd15", "--negative=", "--source=s",
        "--seed=1", "--steps=20", "--square", "--tau-f", "0.8", "--layers", "4 5",
    ]  # fmt: skip


def test_nothing_given_passes_nothing(project):
    for command in ("translate", "sample", "compare", "weights"):
        assert make(project, command).returncode == 0
        assert argv(project) == [command]
    assert make(project, "verify", "MODEL=sd15").returncode == 0
    assert argv(project) == ["--model=sd15"]
    make(project, "translate", "IMG=", "MODEL=", MODEL="sd15")  # empty: the way to unset what the environment has
    assert argv(project) == ["translate"]


@pytest.mark.parametrize(
    "words", [["ARGS=--a 'b"], ["IMG=x.png", "sample"], ["SEED=1", "weights"], ["OUT=x", "verify"]]
)
def test_what_cannot_be_used_ends_in_one_line(project, words):
    done = make(project, *(words if len(words) > 1 else ["translate", *words]))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode == 2 and len(lines) == 1 and words[0].partition("=")[0] in lines[0]
    assert not (project / "argv.json").exists()


def test_a_variable_without_use_is_named():
    with pytest.raises(InputError, match="make sample has no use for IMG='x.png'"):
        arguments("sample", {"IMG": "x.png"})


def test_make_from_another_folder(project, tmp_path):
    done = make(project, "translate", "PROMPT=a b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert argv(project) == ["translate", "--prompt=a b"]


def test_set_up_runs_once(project):
    make(project, "translate")
    assert trace(project) == ["venv", INSTALL]
    make(project, "translate")
    make(project, "sample")
    assert trace(project) == []
    make(project, "test")
    assert trace(project) == [INSTALL_TEST]
    make(project, "test")
    make(project, "translate")
    assert trace(project) == []


def test_the_tests_install_what_a_translation_needs(project):
    make(project, "verify")
    make(project, "translate")
    assert trace(project) == ["venv", INSTALL_TEST]


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml", "constraints.txt"])
def test_set_up_runs_again_when_its_files_change(project, name):
    make(project, "translate")
    trace(project)
    later = (project / ".venv" / ".base").stat().st_mtime + 10
    os.utime(project / name, (later, later))
    make(project, "translate")
    assert trace(project) == [INSTALL]


def test_a_failed_install_is_tried_again(project):
    for target in ("translate", "test"):
        assert make(project, target, PIP_FAILS="1").returncode != 0
        assert not (project / "argv.json").exists()
        trace(project)
    make(project, "translate")
    assert trace(project) == [INSTALL]
    make(project, "test")
    assert trace(project) == [INSTALL_TEST]


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", None], ids=["too old", "none"])
def test_an_old_python_ends_in_one_line(project, script):
    (project / "python").unlink()
    if script:
        (project / "python").write_text(script)
        (project / "python").chmod(0o755)
    done = make(project, "translate")
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode != 0 and len(said) == 1 and "Python 3.10" in said[0] and "PYTHON=" in said[0]
    assert not (project / ".venv").exists()


def test_help_is_the_default_and_names_every_target(project):
    done = make(project)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert re.findall(r"^make (\S+) +\S", done.stdout, re.MULTILINE) == targets
    assert all(f"{name}=" in done.stdout for name in [*OPTIONS, "ARGS"])
    assert trace(project) == []


def test_the_quick_tier_leaves_out_what_is_marked_full(project):
    (project / "tests").mkdir()
    (project / "tests" / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\n@pytest.mark.full\ndef test_b(): pass\n"
    )
    assert "1 passed, 1 deselected" in make(project, "test").stdout.splitlines()[-1]
    assert "2 passed" in make(project, "test-full").stdout.splitlines()[-1]


def test_clean_keeps_results(project):
    keep = [project / name for name in (".venv/x/__pycache__/a", "weights/a", "out/a")]
    drop = [project / name for name in ("minipnp/__pycache__/a", "build/a", "a.egg-info/a", ".ruff_cache/a")]
    for file in keep + drop:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert make(project, "clean").returncode == 0
    assert [file.exists() for file in keep + drop] == [True] * len(keep) + [False] * len(drop)


def test_every_package_is_pinned():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"], setup["options.extras_require"]["test"]
    wanted = [line for lines in needed for line in lines.strip().splitlines()]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    pinned = {canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()}
    seen = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        extras = requirement.extras or {""}
        if (name := canonicalize_name(requirement.name)) in seen:
            continue
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            seen.add(name)
            more = map(Requirement, importlib.metadata.requires(name) or [])
            wanted += [str(r) for r in more if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    assert len(seen) > 20 and seen <= pinned
