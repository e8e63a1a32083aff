"""make train-bundled: all steps in order, each from where it was. With `--minutes`, as far as they go.

    python -m tools.bundled.train                         # both phases, from nothing
    python -m tools.bundled.train --minutes 9             # call it again until it says that all is done
    python -m tools.bundled.train --from weights/bundled  # go on with a model that is there, in the second phase

The first phase trains VAE and UNet at 64 × 64 pixels, the second the UNet and the classifier at 128 × 128. `--first`
and `--samples` say how many pictures the UNet learns from in either; VAE and classifier have plans of their own.
"""

import argparse
import sys
import time
from pathlib import Path

from tools.bundled import captions, classifier, export, fetch, render, run, train_unet, train_vae
from tools.bundled.fetch import DATA
from tools.bundled.training import FINISHED, FIRST, WORK, State


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
    for option in ("--device", "--seed", "--first", "--samples"):
        add(option)
    add("--from", type=Path, dest="origin")
    args, of_unet = parser.parse_known_args(argv)
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes

    for side in render.SIDES:
        prepare(args.data, side)
    shared = ["--data", str(args.data), "--work", str(args.work)]
    for option, value in (("device", args.device), ("seed", args.seed), ("from", args.origin)):
        shared += [] if value is None else [f"--{option}", str(value)]
    small, large = (["--size", str(side)] for side in (FIRST, FINISHED))
    first, second = ([] if n is None else ["--samples", n] for n in (args.first, args.samples))
    if args.origin is None:
        before = [(train_vae, small), (train_unet, [*small, *first, *of_unet]), (classifier, large)]
    else:
        before = [(train_vae, large), (classifier, large)]

    def run_step(step, its_own: list[str]) -> State:
        left = [] if end is None else [f"--minutes={max(0.0, (end - time.monotonic()) / 60)}"]
        return step.main([*shared, *left, *its_own])

    if not all(run_step(*step).finished for step in before):
        print("not done yet: call it again", file=sys.stderr)
        return
    state = run_step(train_unet, [*large, *second, *of_unet])
    if state.step == 0:
        print("not done yet: call it again", file=sys.stderr)
        return
    size = export.export(args.work, args.data, args.to)
    how = "all is done" if state.finished else "not done yet: call it again; what there is"
    print(
        f"{args.to}: {size / 1e6:.1f} MB after {state.step:,} of {state.steps or '?':,} steps; {how}", file=sys.stderr
    )


if __name__ == "__main__":
    run(main)
