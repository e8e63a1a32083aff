"""The command that measures: `evaluate`. One process, or several under torchrun, each with its part of the list."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import torch

from minipnp.app.log import Log
from minipnp.app.models import open_model, suited
from minipnp.app.results import check_out, record
from minipnp.errors import InputError
from minipnp.files.atomic import write_text_atomic
from minipnp.files.loading import pick_device
from minipnp.measure import benchmarks, metrics, records, report
from minipnp.measure.evaluation import RECONSTRUCTION, STEPS, Plan, carry_out, check
from minipnp.measure.runs import RUNS
from minipnp.methods.settings import inversion_of


def evaluate_command(given: dict, argv: list[str]) -> int:
    log = Log(given.get("quiet", False))
    part, parts = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    whole = benchmarks.read_benchmark(given.get("benchmark", "bundled"))
    benchmark = whole.some(given.get("limit"))
    out = Path(given.get("out") or Path("out") / f"evaluate-{benchmark.name}").expanduser()
    check_out(out, many=True)
    for bad in benchmark.bad:
        log.failed(bad)
    inversion = inversion_of(given)
    methods = tuple(dict.fromkeys(given.get("methods") or (*RUNS, RECONSTRUCTION)))
    check(methods, given.get("steps"))
    inversion.schedule(given.get("steps") or STEPS)
    if "device" not in given and torch.cuda.is_available() and parts > 1:
        given["device"] = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    with log.warnings_as_notes():
        folder = Path(given["measures"]).expanduser() if "measures" in given else None
        chosen = given.get("metrics") or metrics.USUAL[benchmark.layout]
        measures = metrics.load_metrics(chosen, benchmark.layout, folder, pick_device(given.get("device")))
        sd, model = open_model(given, log)
        if (size := given.get("size")) is not None and (size < 1 or size % sd.multiple):
            raise InputError(f"--size {size}: give a multiple of {sd.multiple}")
        plan = Plan(
            benchmark, methods, measures, model, inversion, given.get("steps"), size, suited(given).get("scale")
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
    settings = {"benchmark": plan.benchmark.name, "pairs": len(plan.benchmark.pairs), "methods": plan.methods,
                "metrics": list(plan.metrics.measures), "networks": plan.metrics.weights, "steps": plan.steps,
                "size": plan.size, "scale": plan.scale, "inversion": plan.settled} | plan.about  # fmt: skip
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
