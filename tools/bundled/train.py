"""make train-bundled: all steps in order, each from where it was. With `--minutes`, as far as they go.

    python -m tools.bundled.train --samples 3000000
    python -m tools.bundled.train --minutes 9 --fit 20    # call it again until it says that all is done
    python -m tools.bundled.train --from weights/bundled  # go on with a model that is there

The options of the UNet's training are meant for it alone; VAE and classifier have plans of their own.
"""

import argparse
import sys
import time
from pathlib import Path

from minipnp.files.loading import pick_device
from tools.bundled import captions, classifier, export, fetch, render, run, train_unet, train_vae
from tools.bundled.fetch import DATA
from tools.bundled.training import WORK, size_for


def prepare(data: Path, side: int) -> None:
    """Steps 1 and 2, where what they make for pictures of this size is not there."""
    if not all((data / name).exists() for name in ("licences.json", render.file_name(side))):
        fetch.main(["--data", str(data)])
        render.main(["--data", str(data)])
    if not (data / "tokens.json").exists():
        captions.main(["--data", str(data)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", type=Path, default=DATA)
    add("--work", type=Path, default=WORK)
    add("--to", type=Path, default=export.FOLDER)
    add("--minutes", type=float, help="stop after so many, export what there is")
    for option in ("--device", "--seed"):
        add(option)
    add("--from", type=Path, dest="origin")
    add("--size", type=int, choices=render.SIDES)
    args, of_unet = parser.parse_known_args(argv)
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes

    prepare(args.data, size_for(pick_device(args.device), args.size, args.origin))
    shared = ["--data", str(args.data), "--work", str(args.work)]
    for option, value in (("device", args.device), ("size", args.size), ("seed", args.seed), ("from", args.origin)):
        shared += [] if value is None else [f"--{option}", str(value)]
    states = {}
    for step, its_own in ((train_vae, []), (classifier, []), (train_unet, of_unet)):
        left = [] if end is None else [f"--minutes={max(0.0, (end - time.monotonic()) / 60)}"]
        states[step] = step.main([*shared, *left, *its_own])
        if not states[step].finished and step is not train_unet:
            print("not done yet: call it again", file=sys.stderr)
            return
    unet = states[train_unet]
    if unet.step == 0:
        print("not done yet: call it again", file=sys.stderr)
        return
    size = export.export(args.work, args.data, args.to)
    how = "all is done" if unet.finished else "not done yet: call it again; what there is"
    print(f"{args.to}: {size / 1e6:.1f} MB after {unet.step:,} of {unet.steps or '?':,} steps; {how}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
