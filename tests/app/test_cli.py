"""The command line as a whole: what it says, what it refuses, how it ends."""

import errno
import functools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image
from shell import COW, ENV, HORSE, QUICK, files

import minipnp
from minipnp.advice import Advice
from minipnp.app import models, results
from minipnp.app import translate as commands
from minipnp.app.cli import COMMANDS, main
from minipnp.app.log import Log
from minipnp.app.options import Parser
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.known_words import KnownWords
from minipnp.methods.registry import METHODS
from minipnp.options import options_of

LOUD = [option for option in QUICK if option != "--quiet"]
STILL = [*QUICK, "--timesteps=trailing"]  # without the note that two steps begin low

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")


def test_sample(here, capsys):
    quick = ["sample", "--model=bundled", "--device=cpu", "--steps=2", "--quiet", "--seed=1"]
    assert main([*quick, COW, "--width=96", "--out=x.png"]) == 0
    assert capsys.readouterr().out.split() == ["x.png", "x.run.json"]
    assert Image.open("x.png").size == (96, 128)
    assert main([*quick, COW, "--prompt=a dog", "--width=96", "--out=o"]) == 0
    assert sorted(files("o")) == ["picture-1.png", "picture-2.png", "run.json"]
    assert Path("o/picture-1.png").read_bytes() == Path("x.png").read_bytes() != Path("o/picture-2.png").read_bytes()
    assert json.loads(Path("o/run.json").read_text())["settings"]["seed"] == 1


def test_low_memory_and_compile_reach_the_loader(here, monkeypatch):
    seen = {}
    monkeypatch.setattr(minipnp, "load", lambda path, **how: seen.update(how) or pytest.fail("enough"), raising=False)
    with pytest.raises(pytest.fail.Exception):
        main(["translate", *QUICK, f"--image={HORSE}", COW, "--low-memory", "--compile"])
    assert seen["low_memory"] is True and seen["compile"] is True


def test_the_words_of_a_model(here, capsys):
    assert main(["words", "--model=bundled"]) == 0
    template, *lists = capsys.readouterr().out.splitlines()
    said = json.loads((hub.WEIGHTS / "bundled/words.json").read_text())
    assert template == said["template"] and lists[0] == f"STYLE: {', '.join(said['styles'])}"
    listed = {word for line in lists for word in line.partition(": ")[2].split(", ")}
    assert listed == {*said["styles"], *said["concepts"], *said["colours"]}
    assert not listed & {said["held_out"]["style"], *said["held_out"]["concepts"]}
    assert KnownWords.of(here) is None
    (here / "words.json").write_text('{"template": "x"}')
    with pytest.raises(InputError, match="words.json: not a list of words"):
        KnownWords.of(here)


def test_warnings_are_notes_of_one_line_before_the_long_work(here, capsys):
    long = "--prompt=" + "cat " * 80 + "the\nicon"
    loud = [*LOUD, "--timesteps=trailing", f"--image={HORSE}", long, COW, "--inversion-steps=3", "--seed=1", "--out=o"]
    assert main(["translate", *loud]) == 0
    *lines, last = capsys.readouterr().err.splitlines()
    notes = json.loads(Path("o/run.json").read_text())["notes"]
    assert [line for line in lines if not line.startswith(("model: ", "the model's advice: "))] == [
        f"note: {note}" for note in notes
    ]
    assert "--seed" in notes[0] and "sampled again" in notes[1] and "over 75 tokens" in notes[2] and len(notes) == 3
    assert "evaluations" in last


def test_progress_and_the_time_it_takes(capsys, monkeypatch):
    ticks = iter(range(0, 10**6, 60))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))  # a minute between two looks at the clock
    log = Log()
    log.expect({"inversion": 40, "translation": 80}, pictures=3)
    assert list(log.progress(range(20), 20, "inversion")) == list(range(20))
    # 3 steps of 2 evaluations took a minute: 10 s each, for 3 · 120.
    assert capsys.readouterr().err.splitlines() == [
        "120 evaluations of the network for each picture (40 inversion, 80 translation)", "about 60 min in all"
    ]  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(log.progress(range(3), 3, "translation")) == [0, 1, 2]
    assert "translation: 100%" in capsys.readouterr().err
    assert list(Log(quiet=True).progress(range(3), 3, "translation")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_weights_are_fetched_with_the_options(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda **how: asked.append(how))
    assert main(["weights"]) == main(["weights", "--dtype=fp32", "--repo=a/b"]) == 0
    assert asked == [{}, {"dtype": "fp32", "repo": "a/b"}]


def test_a_model_under_the_home_folder_has_its_own_scale(monkeypatch, tmp_path):
    """~ in `--model=~/copy` is left to the program by most shells."""
    (tmp_path / "copy").symlink_to(hub.WEIGHTS / "bundled")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = commands.read_options(["--model=~/copy"])
    assert models.advice(given) == models.advice({"model": "bundled"}) != Advice()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_may_begin_at_home(command, monkeypatch, tmp_path):
    """Most shells leave the ~ in `--vae=~/x` to the program, and make and quotes that of `~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = Parser(prog=command, description="")
    getattr(import_module(f"minipnp.app.{COMMANDS[command][0]}"), f"{command}_options")(parser)
    paths = [action for action in parser._actions if action.metavar == "PATH"]
    assert {action.dest for action in paths} >= ({"out"} if command not in ("words", "weights") else set())
    for action in paths:
        assert action.type("~/x") == str(tmp_path / "x") and action.type("x~/y") == "x~/y", action.dest
    for action in parser._actions:
        if action.dest == "change":
            assert action.type("~/a.txt=~/b.txt") == f"{tmp_path}/a.txt={tmp_path}/b.txt"
            assert action.type("~cat=~dog") == "~cat=~dog"


def test_a_picture_a_vae_and_results_at_home(here, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(here))
    shutil.copy(HORSE, here / "horse.png")
    shutil.copytree(hub.WEIGHTS / "bundled" / "vae", here / "vae")
    assert main(["translate", *QUICK, "~/horse.png", COW, "--vae=~/vae", "--out=~/o"]) == 0
    assert main(["translate", *QUICK, "--image=~/horse.png", COW, "--vae=~/vae", "--out=~/o"]) == 0
    assert sorted(path.name for path in here.iterdir()) == ["horse.png", "o", "vae"]
    with pytest.raises(InputError, match="hub id like"):
        hub.resolve("~nobody-of-this-name/x")


I = f"--image={HORSE}"  # noqa: E741


BAD = [
    # the command and its options
    (["translat"], "translat"),
    (["translate", I, COW, "--step=3"], "no option --step, did you mean --steps"),
    (["translate", I, "--prompt", "-dash"], "expected one argument"),
    (["translate", I, COW, "--steps=1.5"], "--steps.*1.5"),
    (["translate", I, COW, "--steps=0"], "--steps: '0': give a whole number from 1 to 999"),
    (["translate", I, COW, "--steps=1000"], "give a whole number from 1 to 999"),
    (["translate", I, COW, "--inversion-steps=-1"], "--inversion-steps: '-1'"),
    (["translate", I, COW, "--resample=1000"], "1000 steps"),
    (["translate", I, COW, "--steps=50", "--resample=30"], "misses levels"),
    (["translate", I, COW, "--inversion-steps=10"], "inverted to t = 901, not near 981: give 50"),
    (["translate", I, COW, "--inversion-steps=10", "--resample=50"], "inverted to t = 901"),
    (["translate", I, COW, "--inversion-steps=600"], "inverted to t = 600"),
    (["evaluate", "--inversion-steps=5"], "inverted to t = 801"),
    (["translate", "--source=a", COW, "--steps=600"], "600 steps begin at t = 600"),
    (["translate", I, COW, "--random-start=1", "--steps=501"], "501 steps begin at t = 501"),
    (["sample", COW, "--steps=334"], "334 steps begin at t = 667"),
    (["injection", str(HORSE), COW, "--steps=600"], "600 steps begin at t = 600"),
    (["translate", I, COW, "--inversion-at=here"], "one of next, current, last"),
    (["translate", I, COW, "--fixed-point=0"], "'last' with a fixed-point iteration"),
    (["translate", I, COW, "--inversion-at=next", "--fixed-point=-1"], "a whole number, 0 or more"),
    (["translate", I, COW, "--tau-f=1.1"], "give a share from 0 to 1"),
    (["translate", I, COW, "--tau-a=-0.1"], "give a share from 0 to 1"),
    (["translate", I, COW, "--tau-f=nan"], "--tau-f"),
    (["translate", I, COW, "--scale=inf"], "--scale"),
    (["translate", I, COW, "--seed=-1"], "--seed"),
    (["translate", I, COW, "--size=0"], "a whole number, 1 or more"),
    (["sample", COW, "--width=-64"], "a whole number, 1 or more"),
    (["translate", I, COW, "--random-start=18446744073709551616"], "--random-start"),
    (["translate", I, COW, "--alpha=2", "--negative=x"], "--alpha: '2'"),
    (["translate", I, COW, "--alpha-schedule=square", "--negative=x"], "constant, linear, exp"),
    (["translate", I, COW, "--f-layers=12"], "0 to 11"),
    (["translate", I, COW, "--f-layers=8-4"], "--f-layers"),
    (["translate", I, COW, "--f-layers=0-999999999999"], "--f-layers"),
    (["translate", I, COW, "--a-layers=2"], "no self-attention.* decoder 2"),
    (["translate", I, COW, "--like=sdedit"], "--like"),
    (["sample", COW, "--steps=0"], "1 to 999"),
    (["sample"], "no --prompt"),
    (["weights", "--dtype=fp8"], "fp16 or fp32"),
    # what would change nothing
    (["translate", I, COW, "--source=a horse"], "--source changes nothing"),
    (["translate", I, COW, "--source=a", "--negative=b", "--like=plug-and-play"], "--source changes nothing"),
    (["translate", I, COW, "--source-scale=3"], "--source-scale changes nothing"),
    (["translate", I, COW, "--alpha=0.5"], "--negative"),
    (["translate", I, COW, "--alpha-schedule=exp", "--negative=x"], "--alpha is 0"),
    (["invert", I, "--tau-f=0.5"], "--tau-f decides which --features are kept"),
    (["invert", I, "--a-layers=4"], "--a-layers decides"),
    (["translate", "--source=a", COW, "--reconstruct"], "--reconstruct changes nothing"),
    (["translate", "--source=a", COW, "--inversion-steps=3"], "--inversion-steps changes nothing"),
    (["translate", "--source=a", COW, "--random-start=0"], "own start"),
    # the guidance and the text
    (["translate", I], "no --prompt"),
    (["translate", "--source=a"], "no --prompt"),
    (["translate", "--image=", COW], "--image is empty"),
    (["translate", "--image=no such\nfile.png", COW], "no such file"),
    (["translate", "--image=text.png", COW], "not a picture"),
    (["translate", "--image=empty.png", COW], "empty file"),
    (["translate", "--image=cut.png", COW], "damaged or cut short"),
    (["translate", "--image=bomb.png", COW], "too many pixels"),
    (["translate", "--image=folder", COW], "no pictures in the folder"),
    # where to
    (["translate", I, COW, "--out=x.jpg"], "written as PNG"),
    (["translate", I, COW, "--prompt=b", "--out=x.png"], "give a folder"),
    (["translate", "--image=folder2", COW, "--out=x.png"], "give a folder"),
    (["translate", I, COW, "--out=text.png/o"], "not a folder"),
    (["translate", I, COW, "--out=file"], "not a folder"),
    # the model
    (["translate", I, COW, "--device=tpu"], "device 'tpu'"),
    (["translate", I, COW, "--device=cuda:99"], "not usable here"),
    (["translate", I, COW, "--dtype=float64"], "float32, float16, bfloat16"),
    (["translate", I, COW, "--model=no/such/model"], "no model 'no/such/model'"),
    (["translate", I, COW, "--prediction-type=x0"], "--prediction-type"),
]  # fmt: skip


@pytest.mark.parametrize("argv, says", BAD, ids=[" ".join(argv[-2:]) for argv, _ in BAD])
def test_bad_input_ends_in_one_line_before_the_model_is_loaded(here, argv, says, capsys, monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(minipnp, "load", loaded)
    Path("text.png").write_text("no picture")
    Path("file").write_text("no picture")
    Path("empty.png").touch()
    Path("cut.png").write_bytes(HORSE.read_bytes()[:800])
    Path("bomb.png").write_bytes(bomb())
    Path("folder").mkdir()
    Path("folder2").mkdir()
    shutil.copy(HORSE, "folder2")
    before = files(here)
    assert main(argv) == 2
    out, said = capsys.readouterr()
    assert re.fullmatch(rf"minipnp: error: .*{says}.*\n", said) and out == ""
    assert files(here) == before


def bomb() -> bytes:
    """The header of a PNG of 60000 × 60000 pixels."""
    from struct import pack
    from zlib import crc32

    header = b"IHDR" + pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + header + pack(">I", crc32(header)) + HORSE.read_bytes()[33:]


@pytest.mark.parametrize(
    "option, says",
    [("--size=50", "multiples of 32"), ("--size=33", "multiples of 32"), ("--ema", "EMA"),
     ("--vae=no\nwhere", "no where: .*o such"), ("--prompt=\udcff", "not valid UTF-8"),
     ("--negative=\udcff", "not valid UTF-8")],
)  # fmt: skip
def test_what_only_the_model_shows_ends_in_one_line(here, option, says, capsys):
    assert main(["translate", *QUICK, I, COW, option]) == 2
    assert re.fullmatch(rf"minipnp: error: .*{says}.*\n", capsys.readouterr().err) and files(here) == {}


@pytest.mark.parametrize(
    "error, says",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0"), "smaller --size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            "smaller --size",
        ),
        (MemoryError(), "smaller --size"),
    ],
)
def test_lack_of_memory(here, error, says, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(commands, "edit", fail)
    assert main(["translate", *STILL, I, COW]) == 2
    assert re.fullmatch(rf"minipnp: error: not enough memory.*{says}.*\n", capsys.readouterr().err)
    assert files(here) == {}


@pytest.mark.parametrize("dtype, says", [("float16", "--dtype float32"), ("float32", "get the model's files again")])
def test_nan_in_the_result(here, dtype, says, capsys, monkeypatch):
    """Only a type that overflows is given up for another."""
    nan = torch.full((1, 4, 16, 16), float("nan"))
    monkeypatch.setattr(commands, "edit", lambda o, *_: o.sd.decode(nan))
    assert main(["translate", *STILL, I, COW, f"--dtype={dtype}"]) == 2
    assert re.fullmatch(rf"minipnp: error: NaN in the result.*{says}.*\n", capsys.readouterr().err)
    assert files(here) == {}


def test_a_defect_of_the_program_is_not_disguised(monkeypatch):
    monkeypatch.setattr(commands, "edit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["translate", *STILL, I, COW])


def test_a_full_disk(here, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "replace", fail)
    assert main(["translate", *STILL, I, COW]) == 2
    said = (
        r"minipnp: error: out/horse-noto: no room on its disk for translation.png, .*; nothing is kept: make room .*\n"
    )
    assert re.fullmatch(said, capsys.readouterr().err)
    assert files(here) == {}


@pytest.fixture
def room_for_small_pictures(monkeypatch):
    """A disk on which a sheet has no room; `monkeypatch.undo()` makes it."""
    save = Image.Image.save

    def fails(self, *args, **options):
        if self.width > 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *args, **options)

    with monkeypatch.context() as disk:
        disk.setattr(Image.Image, "save", fails)
        yield disk


def test_what_fits_on_a_disk_is_kept(here, capsys, room_for_small_pictures):
    argv = ["translate", *STILL, I, COW, "--prompt=a dog", "--out=o"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ".minipnp-" not in said
    assert "o: no room on its disk for side-by-side.png, run.json; o/translation-1.png, o/translation-2.png is" in said
    assert sorted(files(here)) == ["o/translation-1.png", "o/translation-2.png"]
    room_for_small_pictures.undo()
    assert main(argv) == 0
    assert sorted(files(here)) == [f"o/{n}" for n in ("run.json", "side-by-side.png", *sorted(files("o"))[2:])]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_run_over_a_folder_stops_where_the_disk_is_full(here, code, capsys, edits, monkeypatch):
    (here / "icons").mkdir()
    for name in "abc":
        shutil.copy(HORSE, here / "icons" / f"{name}.png")
    save = Image.Image.save

    def fails(self, *args, **options):
        if self.width > 300 and len(edits) == 2:
            raise OSError(code, "full")
        save(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", fails)
    assert main(["translate", *QUICK, "icons", COW, "--out=o"]) == 2
    assert len(edits) == 2 and "o/b: no room" in capsys.readouterr().err
    assert {*files("o")} == {"a/translation.png", "a/side-by-side.png", "a/run.json", "b/translation.png"}


def test_results_have_the_permissions_of_any_file(here):
    before = os.umask(0o027)
    try:
        assert main(["translate", *QUICK, I, COW]) == 0
        assert main(["invert", *QUICK, I, "--out=g/horse.safetensors"]) == 0
        assert main(["features", *QUICK, str(HORSE), "--t=1", "--raw"]) == 0
        saved = "--save-direction=d.safetensors"
        p2z = ["--method=pix2pix-zero", "--source=a horse", "--change=horse=cow", saved]
        assert main(["translate", *QUICK, I, *p2z]) == 0
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in here.rglob("*") if path.is_file()}
    assert modes.keys() >= {"run.json", "horse.safetensors", "d.safetensors", "horse-noto.safetensors"}
    assert {*modes.values()} == {0o640}, modes
    assert {stat.S_IMODE(path.stat().st_mode) for path in here.rglob("*") if path.is_dir()} == {0o750}


@pytest.mark.parametrize("when", ["working", "writing"])
def test_interrupted_nothing_is_left(here, when, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    target = {"working": (Log, "progress"), "writing": (results, "write_text_atomic")}[when]
    monkeypatch.setattr(*target, interrupt)
    assert main(["translate", *STILL, I, COW]) == 130
    assert capsys.readouterr().err == "minipnp: interrupted\n"
    assert files(here) == {}


def test_ctrl_c(here):
    command = [sys.executable, "-m", "minipnp", "translate", "--model=bundled", "--device=cpu"]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs do not hear it
    with subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        while "evaluations" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and rest.splitlines()[-1] == "minipnp: interrupted" and "Traceback" not in rest
    assert files(here) == {}


def test_all_names_of_the_package_are_there():
    assert all(callable(getattr(minipnp, name)) for name in minipnp.__all__)
    with pytest.raises(AttributeError):
        _ = minipnp.no_such_name


def test_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"{minipnp.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_alone_it_says_what_there_is(argv, capsys):
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_what_needs_no_network_does_not_wait_for_torch():
    script = """
import sys
from minipnp.app.cli import main
assert main([]) == main(["--help"]) == main(["--version"]) == 0
assert main(["translat"]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.startswith(f"usage: minipnp {command} [options]\n\n{command}: ")


def test_the_help_of_translate_opens_with_examples_and_has_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["translate", "--help"])
    shown = capsys.readouterr().out
    assert shown.index("examples:") < shown.index("what people use:") < shown.index("--method pnp:")
    shown = " ".join(shown.split())
    for method in METHODS.values():
        for o in options_of(method.settings):
            assert o.flag in shown and o.help in shown, o.flag
    assert "(default: 7.5; ddim, pix2pix-zero 5)" in shown and "(default: 0.1; masked-pnp 0.3)" in shown
