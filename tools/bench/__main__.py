"""Plug-and-Play's edit, the authors' way and ours, side by side in one process: make bench

    python -m tools.bench                           SD-1.5's size, random weights, 256² and 512²
    python -m tools.bench --smoke                   the same code on a small network, in seconds
    python -m tools.bench --device cuda --dtype float16 --compile inductor

Every way makes the same edit of three steps: one injects f and A, one f, one nothing. Rounds alternate between the
ways; of each kind of step the median counts, times the number of such steps in an edit of 50 (25, 15, 10). Guidance
latents are noise of a random x_0, for the time of a step does not depend on what they show. Writes bench.json and
bench.png.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

from minipnp.config import UNetConfig
from minipnp.files.atomic import write_text_atomic
from minipnp.files.loading import pick_device, pick_dtype
from minipnp.machine.speed import exact_float32
from tools.bench.case import SMALL
from tools.bench.measuring import matrix_rate, measure
from tools.bench.processes import model_for, start_up, whole_peaks, whole_steps
from tools.bench.report import plot, shown, table, whole, work


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a small network, one round")
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels (default: 256 512)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--compile", metavar="BACKEND", help="compiled ways too: inductor")
    parser.add_argument("--start-up", action="store_true", help="only start-up, and the peak of a whole translation")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)
    if args.rounds < 1 or any(pixels < 64 or pixels % 64 for pixels in args.sizes or ()):
        parser.error("--rounds counts from 1, --sizes are multiples of 64")
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    if dtype == torch.float32:
        exact_float32(device)
    config, rounds = (SMALL, 1) if args.smoke else (UNetConfig(), args.rounds)
    sizes = [] if args.start_up else args.sizes or ([64] if args.smoke else [256, 512])

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    counts, rate = work(), matrix_rate(device, dtype)
    result = {
        "device": name, "dtype": str(dtype).removeprefix("torch."), "torch": torch.__version__,
        "python": platform.python_version(), "rounds": rounds, "matrix_gflops": rate, "evaluations": counts,
        "sizes": [],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{name}, {result['dtype']}, torch {torch.__version__}, medians of {rounds} rounds\n")
    for pixels in sizes:
        print(f"{pixels} × {pixels}", file=sys.stderr, flush=True)
        size = measure(config, pixels // 8, rounds, device, dtype, args.compile)
        result["sizes"].append(size)
        plot(result["sizes"], args.out / "bench.png")
        write_text_atomic(json.dumps(result, indent=2) + "\n", args.out / "bench.json")
        print(table(size), whole(size, counts), sep="\n\n")
        floor = size["gflop"] / rate
        print(
            f"\nOne evaluation is {size['gflop']:,.0f} GFLOP; at the {rate:,.0f} GFLOP/s of large matrix products that"
        )
        print(f"is {shown(floor)}, {floor / size['evaluation']['minipnp']:.0%} of what it takes.\n", flush=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes to come
    with model_for(args.smoke, dtype) as model:
        result["start_up"] = start_up(args.smoke, model, device, dtype)
        result["whole_peak_gb"] = whole_peaks(model, device, dtype)
    write_text_atomic(json.dumps(result, indent=2) + "\n", args.out / "bench.json")
    print("| a fresh process, from its start | seconds |\n|---|---:|")
    print(*(f"| {what} | {seconds:.2f} |" for what, seconds in result["start_up"].items()), sep="\n")
    steps = whole_steps(device)
    print(f"\n| a whole translation in {steps} steps at the model's size, weights included | peak, GB |\n|---|---:|")
    print(*(f"| {what} | {gb:.2f} |" for what, gb in result["whole_peak_gb"].items()), sep="\n")
    print("\nEvaluations: " + ", ".join(f"{what} {n:,}" for what, n in counts.items()))
    print(args.out / "bench.json", *([args.out / "bench.png"] if sizes else []), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
