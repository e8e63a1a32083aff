"""The command that measures: `evaluate`. One process, or several under torchrun, each with its part of the list."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from minipnp.app.log import Log
from minipnp.app.models import open_model, say_advice
from minipnp.app.options import (
    Parser,
    add,
    add_inversion_options,
    add_model_options,
    add_options,
    add_taking_options,
    reader,
    words,
)
from minipnp.app.results import check_out, record
from minipnp.errors import InputError
from minipnp.files.atomic import write_text_atomic
from minipnp.files.loading import pick_device
from minipnp.guidance import Inversion
from minipnp.measure import benchmarks, metrics, records, report
from minipnp.measure.evaluation import RECONSTRUCTION, STEPS, Plan, carry_out, check
from minipnp.measure.runs import EVALUATED, RUNS
from minipnp.methods.registry import METHODS
from minipnp.options import PLACE, Stepped, whole
from minipnp.options import STEPS as STEPS_FORM


def evaluate_options(here: Parser) -> None:
    here.description += (
        "\n\nBroken off, the same command goes on where it was. N processes share the list under"
        "\n`torchrun --nproc-per-node N -m minipnp evaluate …`. Methods, metrics and layouts: docs/evaluation.md."
    )
    here.add_argument(
        "benchmark", nargs="?", type=reader(PLACE), help="bundled (the default), or a folder of TI2I or of PIE-Bench"
    )
    names = ", ".join((*RUNS, RECONSTRUCTION))
    add(here, "--methods", f"any of {names} (default: the published methods, with ablations)", words())
    metrics_help = "any of clip, clip-acc, structure, background, icons, iou (default: icons,iou for the bundled one, "
    add(here, "--metrics", metrics_help + "clip,structure for others, background too where there are masks)", words())
    add(here, "--limit", "only N pairs, always the same ones; more can follow", whole(1))
    add(here, "--out", "a folder (default: out/evaluate-BENCHMARK)", PLACE)
    here.add_argument("--pictures", help="keep the translations", action="store_true", default=None)
    add(here, "--measures", "a folder with the weights of CLIP, DINO, SqueezeNet, instead of the hub", PLACE)
    add(here, "--steps", "steps of every method (default: each method's own)", STEPS_FORM)
    add_options(here, Stepped, ["timesteps"])
    add_taking_options(here, "size")
    add_inversion_options(here)
    add_model_options(here)


def evaluate_command(given: dict, argv: list[str]) -> int:
    log = Log(given.get("quiet", False))
    part, parts = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    whole = benchmarks.read_benchmark(given.get("benchmark", "bundled"))
    benchmark = whole.some(given.get("limit"))
    out = Path(given.get("out") or Path("out") / f"evaluate-{benchmark.name}")
    check_out(out, many=True)
    for bad in benchmark.bad:
        log.failed(bad)
    inversion = Inversion.given(given)
    methods = tuple(dict.fromkeys(given.get("methods") or (*EVALUATED, RECONSTRUCTION)))
    edit = Stepped.given({"steps": STEPS} | given)
    check(methods, given.get("steps"), edit.spacing)
    inversion.schedule(edit)
    with log.warnings_as_notes():
        folder = Path(given["measures"]) if "measures" in given else None
        chosen = given.get("metrics") or metrics.USUAL[benchmark.layout]
        measures = metrics.load_metrics(chosen, benchmark.layout, folder, pick_device(given.get("device")))
        sd, model = open_model(given, log)
        if (size := given.get("size")) is not None and (size < 1 or size % sd.multiple):
            raise InputError(f"--size {size}: give a multiple of {sd.multiple}")
        say_advice(sd.advice, given, log, *{METHODS[RUNS[name].method].settings for name in methods if name in RUNS})
        model.pop("threads", None)  # of another number the results are near enough to be kept
        plan = Plan(
            benchmark, methods, measures, model, inversion, given.get("steps"), edit.spacing, size, sd.advice.options
        )
        pictures = out / "pictures" if given.get("pictures") else None
        carry_out(plan, sd, out / "records", log, part, parts, pictures)
        return finish(plan, out, log, argv)


def decisive(argv: list[str]) -> Iterator[str]:
    """The arguments without those that decide no result: --quiet, --pictures; --out and --device and their values."""
    rest = iter(argv)
    for argument in rest:
        if argument in ("--out", "--device"):
            next(rest, None)
        elif argument not in ("--quiet", "--pictures") and not argument.startswith(("--out=", "--device=")):
            yield argument


def finish(plan: Plan, out: Path, log: Log, argv: list[str]) -> int:
    """The table and the plot, by whichever process finds all done."""
    known, _ = records.read_records(out / "records")
    _, failed, missing = report.results(plan, known)
    if missing:
        log.say(f"{missing} results are missing: those of the other processes; the last one makes the table")
        return 0
    text = report.markdown(plan, known, shlex.join(["minipnp", *decisive(argv)]))
    settings = {
        "benchmark": plan.benchmark.name,
        "pairs": len(plan.benchmark.pairs),
        "methods": plan.methods,
        "metrics": list(plan.metrics.measures),
        "networks": plan.metrics.weights,
        "steps": plan.steps,
        "timesteps": plan.spacing,
        "size": plan.size,
        "advised": plan.advised,
        "inversion": plan.settled,
    } | plan.about
    made = [out / "results.md", out / "results.png", out / "run.json"]
    try:
        report.plot(plan, known, made[1])
        text += "\n![Layout against text](results.png)\n"
    except InputError as error:
        log.note(str(error))
        made.pop(1)
    write_text_atomic(text, made[0])
    run = record(settings, log, argv, left_out=[*plan.benchmark.bad, *failed])
    write_text_atomic(json.dumps(run, ensure_ascii=False, indent=2) + "\n", made[-1])
    for line in text.splitlines():
        log.say(line)
    print(*made, sep="\n")
    return 0
