"""`translate --repeat RUN.json`: an earlier run again, and what differs where its pictures are not the same."""

import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from minipnp.app.log import Log
from minipnp.app.options import flag_of, pictures_of
from minipnp.errors import InputError

ALLOWED = {"repeat", "out", "device", "quiet"}


def repeat(given: dict, read_options: Callable[[list[str]], dict], run: Callable[[dict, list[str]], list[Path]]) -> int:
    """Repeats the run of a run.json, in its folder and with its number of threads, and compares the pictures.

    read_options: the arguments of a command line → its options. run: options and arguments → the files, run.json last.
    """
    log = Log(given.get("quiet", False))
    pictures_of(given)
    if more := sorted(given.keys() - ALLOWED):
        flags = ", ".join(map(flag_of, more))
        raise InputError(
            f"{flags}: --repeat takes all options from the earlier run; only --out, --device and --quiet go with it"
        )
    place = Path(given["repeat"]).absolute()
    before = read_run(place)
    argv = before["argv"][3:]
    out = Path(given["out"]).absolute() if "out" in given else beside(place)
    with within(before["cwd"]), threads(before["machine"]["threads"]):
        options = read_options(argv[1:]) | {"out": str(out)}
        options |= {name: given[name] for name in ("device", "quiet") if name in given}
        options |= one_picture(options, before["settings"])
        files = run(options, argv)
        after = read_run(files[-1])
    report(before, after, log)
    return 0


def beside(place: Path) -> Path:
    """Where the new run goes: horse-again beside the folder horse, x-again.png beside x.png, whose x.run.json it is."""
    if place.name in ("run.json", "summary.run.json"):
        return place.parent.with_name(f"{place.parent.name}-again")
    return place.with_name(f"{place.name.removesuffix('.run.json')}-again.png")


def read_run(place: Path) -> dict:
    try:
        run = json.loads(place.read_text(encoding="utf-8"))
        if run["argv"][3] != "translate" or not {"settings", "pictures", "versions", "machine", "cwd"} <= run.keys():
            raise KeyError
        if type(run["machine"]["threads"]) is not int:
            raise TypeError
        return run
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror or error})") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{place}: not the run.json of a translation; `minipnp translate` leaves one") from None


def one_picture(options: dict, settings: dict) -> dict:
    """Of a run over a folder, whose run.json this is of one picture: only that."""
    image = options.get("image") or options.get("image_")
    if image is None or "picture" not in settings or not Path(image).is_dir():
        return {}
    return {"image": str(Path(image) / settings["picture"]), "image_": None}


@contextmanager
def within(folder: str):
    """Paths of the earlier run are meant from the folder that it ran in."""
    here = os.getcwd()
    if Path(folder).is_dir():
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@contextmanager
def threads(n: int):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def report(before: dict, after: dict, log: Log) -> None:
    """Says whether the pictures are the same, and if not, what else is not."""
    other = [name for name, pixels in after["pictures"].items() if before["pictures"].get(name) != pixels]
    if not other:
        log.say(f"the same pictures, pixel by pixel: {', '.join(after['pictures'])}")
        return
    log.note(f"not the same as before: {', '.join(other)}")
    for what in ("settings", "versions", "machine"):
        then = before[what]
        now = after[what]
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                log.note(f"{what}: {name} was {then.get(name)!r}, is {now.get(name)!r}")
