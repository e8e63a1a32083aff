"""Bad calls and malformed files, at random from a seed: no traceback, no hang; one line and exit 2, or a sound result.

`make test` runs a few; `pytest tests/test_fuzz.py --fuzz long` 500 calls and 5,000 files, in minutes. A case that fails
names its number: `--fuzz NUMBER` runs that one alone.
"""

import contextlib
import functools
import io
import json
import random
import re
import shlex
import signal
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from stand_ins import SCHEDULER, TINY, mapped_states, random_states, save_components, save_single

import minipnp
from minipnp.app.cli import COMMANDS, main
from minipnp.app.options import Parser
from minipnp.errors import InputError
from minipnp.files.images import read_image
from minipnp.measure.benchmarks import read_benchmark
from minipnp.measure.records import read_records
from minipnp.methods.registry import METHODS

SECONDS = 60  # of a case, after which it hangs
CALLS = {"short": 60, "long": 500}
FILES = {"short": 300, "long": 5000}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder with a tiny model in both layouts, pictures, a guidance file, an earlier run, to run in."""
    folder = tmp_path_factory.mktemp("fuzz")
    states = mapped_states(random_states(), lambda x: 0.1 * x)
    save_components(folder / "tiny", states, scheduler=SCHEDULER)
    (folder / "tiny/words.json").write_text(json.dumps(WORDS))
    save_single(folder / "single.safetensors", states)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.webp", "d.gif", "e.bmp", "f.tif", "g.ppm", "h.tga"):
        Image.fromarray(pixels).save(folder / name)
    (folder / "pictures").mkdir()
    Image.fromarray(pixels).save(folder / "pictures/a.png")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("a cat\na dog\n")
    save_file({"direction": torch.zeros(1, 77, 16)}, folder / "direction.safetensors")
    with contextlib.chdir(folder), memory():
        assert call(["invert", *MODEL, "--image=a.png", "--steps=2", "--out=guidance.safetensors"])[0] == 0
        assert call(["translate", *MODEL, "--image=a.png", "--prompt=a cat", "--steps=2", "--out=run"])[0] == 0
        yield folder


MODEL = ["--model=tiny", "--device=cpu"]
WORDS = {"template": "a STYLE icon of a CONCEPT on a COLOUR background", "styles": ["flat"], "colours": ["red"],
         "categories": {"cat": "animal"}, "advice": {"options": {"scale": 3.0}, "layer": 7, "share": 1.0}}  # fmt: skip


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """The model is loaded once for each way to load it, as long as its files are whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(Path.cwd() / "cache"))
        patch.setattr(minipnp, "load", functools.cache(minipnp.load))
        yield


def call(argv: list[str]) -> tuple[int, str, str]:
    """→ exit code, stdout, stderr. Anything raised but InputError and the end after --help is a failure."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        try:
            code = main(argv)
        except SystemExit as end:  # of --help
            code = end.code
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def late(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sound(code: int, out: str, err: str) -> str:
    """What came of a call, "refused" or "made"; AssertionError: neither, as it should be."""
    lines = [line for line in err.splitlines() if line.startswith("minipnp:")]
    assert "Traceback" not in err
    if code == 2:
        assert len([line for line in lines if "; skipped" not in line]) == 1 and len(lines[-1]) < 2000, err
        return "refused"
    assert code == 0, (code, err)
    for line in filter(None, out.splitlines()):
        if Path(line).name == "translation.png":
            image = Image.open(line)
            assert list(image.size) == json.loads(image.text["minipnp"])["pixels"]
            assert np.isfinite(np.asarray(image, dtype=float)).all()
    return "made"


def numbers(request, counts: dict[str, int]) -> range:
    how = request.config.getoption("--fuzz")
    return range(counts[how]) if how in counts else range(int(how), int(how) + 1)


def each(request, counts: dict[str, int], case: Callable[[random.Random], str]) -> None:
    """Runs the cases, and fails with the first that is not sound."""
    found = Counter()
    for number in numbers(request, counts):
        r = random.Random(number)
        try:
            with in_time():
                found[case(r)] += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {type(error).__name__}: {error}") from error
    print(dict(found))
    assert len(found) > 1 or len(numbers(request, counts)) == 1, found  # some are refused, and some are not


# ---------------------------------------------------------------------------------------------------------------------
# Calls.

BASE = {
    "translate": ["--image=a.png", "--prompt=a cat", "--steps=2"],
    "sample": ["--prompt=a cat", "--steps=2"],
    "invert": ["--image=a.png", "--steps=2"],
    "compare": ["--image=a.png", "--source=a cat", "--prompt=a dog", "--steps=2"],
    "features": ["--image=a.png", "--steps=2"],
    "correspond": ["--image=a.png", "--image=b.jpg", "--steps=2"],
    "segment": ["--image=a.png", "--steps=2", "--parts=2"],
    "injection": ["--image=a.png", "--prompt=a cat", "--steps=2"],
    "words": [],
    "evaluate": ["pictures"],
}
VALUES = (
    "", " ", "-1", "0", "1", "2", "3", "16", "17", "32", "0.5", "-0.5", "1.5", "1e400", "nan", "inf", "1e-9", "0x10",
    "99999999999999999999", "a cat", "cat", "cat=dog", "cat=0.5", "cat=cat", "=", "cat=", "=dog", "a=b=c", "4", "4-8",
    "12", "none", "8-4", "4,", ",", "501,1", "0,0 5,5", "f,A", "ü ☃", "\ud800", "a\nb", "a\0b", "{category}",
    "(cat:1.3)",
    "a.png", "b.jpg", "pictures", "empty", "missing.png", "text.txt", "text.txt=text.txt", "tiny", "single.safetensors",
    "guidance.safetensors", "direction.safetensors", "run/run.json", "bundled", "sd15", "owner/name",
    "~/nothing", "/dev/null",
    ".", "cpu", "cuda", "mps", "float32", "float16", "bfloat16", "leading", "trailing", "last", "next", *METHODS,
)  # fmt: skip
PLACES = (
    "o",
    "o.png",
    "o.jpg",
    "o.safetensors",
    "",
    ".",
    "a.png",
    "run",
    "a.png/x",
    "x" * 300,
    "a\0b",
    "/dev/null",
    "/proc/x",
)
LEFT_OUT = ("--compile", "--size", "--width", "--height", "--repeat")  # minutes; gigabytes; takes another run's options


@functools.cache
def flags(command: str) -> list[tuple[str, bool]]:
    """The command's options, and whether each takes a value."""
    parser = Parser(prog=command, description="")
    getattr(import_module(f"minipnp.app.{COMMANDS[command][0]}"), f"{command}_options")(parser)
    return [
        (flag, action.nargs != 0)
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and flag not in LEFT_OUT
    ]


def bad_call(r: random.Random) -> list[str]:
    command = r.choice(list(BASE))
    argv = [*BASE[command]]
    if r.random() < 0.15 and argv:
        argv.pop(r.randrange(len(argv)))
    if r.random() < 0.4 and command == "translate":
        argv.append(f"--method={r.choice(list(METHODS))}")
    for _ in range(r.choice((0, 1, 1, 2, 3))):
        flag, takes = r.choice(flags(command))
        value = r.choice(PLACES if flag in ("--out", "--save-direction") else VALUES)
        argv.append(f"{flag}={value}" if takes else flag)
    if r.random() < 0.1:
        argv.insert(r.randrange(len(argv) + 1), r.choice(VALUES))
    if not any(x.startswith("--out=") for x in argv) and command != "words":
        argv.append("--out=o.safetensors" if command == "invert" else "--out=o")
    return [command, *([] if command == "words" else MODEL), *argv]


def test_bad_calls(place, request):
    def case(r: random.Random) -> str:
        argv = bad_call(r)
        try:
            return sound(*call(argv))
        except Exception as error:
            raise AssertionError(f"minipnp {shlex.join(argv)!r}: {type(error).__name__}: {error}") from error

    each(request, CALLS, case)


# ---------------------------------------------------------------------------------------------------------------------
# Files.

ODD = ("-1", "0", "1e999", "NaN", "null", "true", '"x"', "[]", "{}", "1.5", "18446744073709551616", "[[1]]", '""')


def spoilt(content: bytes, r: random.Random) -> bytes:
    """The content of a file with one thing wrong, or a few."""
    if not content:
        return content
    at = r.randrange(len(content))
    length = r.choice((1, 4, 64, 1024))
    kinds = (
        lambda: content[:at],
        lambda: content + r.randbytes(length),
        lambda: content[:at] + r.randbytes(length) + content[at + length :],
        lambda: content[:at] + content[at + length :],
        lambda: content[:at] + bytes(length) + content[at + length :],
        lambda: content[:at] + b"\xff" * length + content[at + length :],
        lambda: content[:at] + content[at : at + length] + content[at:],
        lambda: content[: at % 200] + bytes([r.randrange(256)]) + content[at % 200 + 1 :],
        lambda: r.randbytes(length),
        lambda: b"",
    )
    return r.choice(kinds)()


def spoilt_json(text: str, r: random.Random) -> str:
    """JSON with one value or name that is another, or is gone."""
    values = list(re.finditer(r'-?\d+(\.\d+)?|"[^"]*"|true|false|null|\[[^\[\]]*\]|\{[^{}]*\}', text))
    if not values:
        return text
    value = r.choice(values)
    new = r.choice((*ODD, "")) if r.random() < 0.8 else r.choice(values)[0]
    return text[: value.start()] + new + text[value.end() :]


def spoilt_tensors(content: bytes, r: random.Random) -> bytes:
    """A safetensors file whose header says something else, and is of the length that the file says."""
    (length,) = struct.unpack("<Q", content[:8])
    header = spoilt_json(content[8 : 8 + length].decode(), r).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def spoil(path: Path, r: random.Random) -> bytes:
    content = path.read_bytes()
    if r.random() < 0.5 and path.suffix == ".safetensors":
        return spoilt_tensors(content, r)
    if r.random() < 0.8 and path.suffix in (".json", ".jsonl"):
        return spoilt_json(content.decode(), r).encode()
    return spoilt(content, r)


SAMPLE = ["sample", "--device=cpu", "--prompt=a cat", "--steps=1", "--out=o"]
TRANSLATE = ["translate", "--device=cpu", "--prompt=a cat", "--steps=2", "--out=o"]
RECORD = {"key": "k", "pair": "p", "guidance": "g", "method": "pnp", "values": {"iou": 0.5}, "seconds": 1.0}


def through(argv: list[str]) -> Callable[[Path], str]:
    return lambda path: sound(*call([part.replace("FILE", str(path)) for part in argv]))


def a_picture(path: Path) -> str:
    image = read_image(path)
    assert image.mode == "RGB" and min(image.size) >= 16
    return "made"


def records_of(path: Path) -> str:
    records, damaged = read_records(path.parent)
    assert all(isinstance(x, float | int) for record in records.values() for x in record.get("values", {}).values())
    return "refused" if damaged else "made"


def a_benchmark(path: Path) -> str:
    return "refused" if read_benchmark(str(path.parent)).bad else "made"


def readers(folder: Path) -> dict[str, tuple[Path, Callable[[Path], str]]]:
    """By kind of file: a whole one, and what reads it, in a folder of its own whose other files are whole."""
    (folder / "records").mkdir(exist_ok=True)
    (folder / "records/0of1.jsonl").write_text("\n".join([json.dumps(RECORD)] * 3) + "\n")
    (folder / "list").mkdir(exist_ok=True)
    Image.open(folder / "a.png").save(folder / "list/a.png")
    rows = [{"init_img": "a.png", "source_prompt": "a cat", "target_prompts": ["a dog", "a cow"]}]
    (folder / "list/list.yaml").write_text(json.dumps(rows))
    model = {
        f"tiny/{name}": through([*SAMPLE, "--model=tiny"])
        for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "words.json",
                     "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors",
                     "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    }  # fmt: skip
    others = {
        "guidance.safetensors": through([*TRANSLATE, "--model=tiny", "--guidance=FILE"]),
        "direction.safetensors": through(
            [
                "translate",
                *MODEL,
                "--method=pix2pix-zero",
                "--image=a.png",
                "--steps=2",
                "--direction=FILE",
                "--out=o",
                "--lambda-ac=0",
                "--lambda-kl=0",
                "--amount=0",
            ]
        ),
        "run/run.json": through(["translate", "--device=cpu", "--repeat=FILE", "--out=o"]),
        "records/0of1.jsonl": records_of,
        "list/list.yaml": a_benchmark,
    }
    pictures = {name: a_picture for name in ("a.png", "b.jpg", "c.webp", "d.gif", "e.bmp", "f.tif", "g.ppm", "h.tga")}
    return {name: (folder / name, read) for name, read in (model | others | pictures).items()}


def test_malformed_files(place, request, monkeypatch):
    kinds = readers(place)
    monkeypatch.setattr(minipnp, "load", minipnp.load.__wrapped__)  # files change between the cases

    def case(r: random.Random) -> str:
        kind = r.choice(list(kinds))
        path, read = kinds[kind]
        whole = path.read_bytes()
        path.write_bytes(spoil(path, r))
        try:
            return read(path)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, error
            return "refused"
        except Exception as error:
            raise AssertionError(f"{kind}: {type(error).__name__}: {error}") from error
        finally:
            path.write_bytes(whole)

    each(request, FILES, case)


def test_the_whole_files_are_read(place):
    """Or nothing that is refused says anything."""
    for name, (path, read) in readers(place).items():
        assert read(path) == "made", name
    assert TINY["unet"].size == 8
