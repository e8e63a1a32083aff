"""An evaluation: every method on every pair of a benchmark, each result kept as it comes.

The unit of the work is a guidance picture: what its methods and prompts need of it, such as its inversion, is made
once, and every method and prompt is then run by itself, so that no result depends on what runs beside it. A result is
known by its key, the digest of all that decides it (weights, picture, texts, settings); what has a record is not made
again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from minipnp.ddim import timesteps
from minipnp.errors import explain, is_full
from minipnp.files import hub
from minipnp.files.images import fit, psnr, read_image, to_image, to_tensor, write_png
from minipnp.guidance import Inversion
from minipnp.measure import records
from minipnp.measure.benchmarks import Benchmark, Pair
from minipnp.measure.metrics import Case, Metrics
from minipnp.measure.runs import RUNS, UNTOLD_SCALE, check_runs, run_on, seed_of
from minipnp.measure.ssim import ssim
from minipnp.methods.original import Original, Taking
from minipnp.methods.registry import METHODS
from minipnp.model import StableDiffusion
from minipnp.options import Stepped
from minipnp.pipeline import reconstruct
from minipnp.pnp import PnP

RECONSTRUCTION = "reconstruction"  # what the inversion lost: x_0 inverted and sampled again, against its decoding
STEPS = PnP.steps
DIGITS = 5  # of a value, behind the point, that a record holds


class Listener(Protocol):
    """Is told what an evaluation does: say, what is going on; note, what records should keep; failed, what is skipped.

    progress: hands on the things that it is given, one by one, and may show how many are done.
    """

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def failed(self, reason: str) -> None: ...

    def progress(self, things: Iterable, total: int, what: str) -> Iterable: ...


def check(methods: tuple[str, ...], steps: int | None, spacing: str = Stepped.spacing) -> None:
    timesteps(STEPS if steps is None else steps, spacing)
    check_runs(methods, (*RUNS, RECONSTRUCTION))


@dataclass(frozen=True)
class Job:
    method: str
    pair: Pair
    key: str


@dataclass(frozen=True)
class Plan:
    """What an evaluation is. about: the model, as the records say it. steps: of every method; None: its own.

    spacing: of the timesteps, see `ddim.timesteps`. advised: the options that the model advises, by name.
    """

    benchmark: Benchmark
    methods: tuple[str, ...]
    metrics: Metrics
    about: dict
    inversion: Inversion = Inversion()
    steps: int | None = None
    spacing: str = Stepped.spacing
    size: int | None = None
    advised: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        check(self.methods, self.steps, self.spacing)

    @property
    def edit(self) -> Stepped:
        """The steps of the methods that have no number of their own."""
        return Stepped(self.steps or STEPS, spacing=self.spacing)

    @property
    def settled(self) -> dict:
        """The inversion, with the steps that it has."""
        return self.inversion.record_for(self.edit)

    @property
    def given(self) -> dict[str, object]:
        """The options that are set for every method."""
        return {"timesteps": self.spacing} | ({} if self.steps is None else {"steps": self.steps})

    @cached_property
    def jobs(self) -> dict[str, list[Job]]:
        """By guidance picture, whatever a method lacks left out."""
        jobs = {}
        for guidance, pairs in self.benchmark.groups.items():
            image = pairs[0].image
            picture = hub.sha256(image) if image and image.is_file() else None
            jobs[guidance] = [
                Job(name, pair, self.key(name, pair, picture))
                for pair in pairs
                for name in self.methods
                if name != RECONSTRUCTION and not RUNS[name].lacks(pair)
            ]
            if RECONSTRUCTION in self.methods and image:
                jobs[guidance].insert(0, Job(RECONSTRUCTION, pairs[0], self.key(RECONSTRUCTION, pairs[0], picture)))
        return jobs

    def key(self, method: str, pair: Pair, picture: str | None) -> str:
        """picture: its SHA-256."""
        decides = {
            "about": self.about,
            "picture": picture,
            "seed": seed_of(pair),
            "inversion": self.settled,
            "size": self.size,
            "steps": self.steps,
            "method": method,
        }
        if method != RECONSTRUCTION:
            run = RUNS[method]
            settings = run.settings_for(pair, self.given, self.advised).record()
            if settings["timesteps"] == Stepped.spacing:
                del settings["timesteps"]  # older records, which still hold, do not have it
            decides |= {
                "texts": [pair.source, pair.prompt, pair.scale, pair.asked],
                "mask": pair.mask,
                "negative": run.negative,
                "run": [run.method, settings],
                "metrics": sorted(self.metrics.measures),
                "networks": self.metrics.weights,
            }
        return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:20]


def carry_out(
    plan: Plan,
    sd: StableDiffusion,
    folder: Path,
    log: Listener,
    part: int = 0,
    parts: int = 1,
    pictures: Path | None = None,
    over: Callable[[], bool] = lambda: False,
) -> None:
    """Does what has no record in `folder`, this process its part of it, until all is done or `over` says so.

    pictures: where the translations are kept. What fails is said and recorded, and tried again by the next evaluation.
    """
    writer = records.Writer(folder, f"{part}of{parts}")
    try:
        known, damaged = records.read_records(folder)
        if damaged:
            log.note(f"{damaged} damaged lines in {folder}: what they held is done again")
        ours = list(plan.jobs.values())[part::parts]
        there = {key for key, record in known.items() if "values" in record}
        # A prompt that stands twice has one key.
        todo = [list({job.key: job for job in jobs if job.key not in there}.values()) for jobs in ours]
        count = sum(map(len, todo))
        before = sum(job.key in there for jobs in ours for job in jobs)
        log.say(f"{before} results are there, {count} to do")
        if pictures is not None:
            done = [job for jobs in ours for job in jobs if job.key in there]
            if without := sum(not picture_place(pictures, job).exists() for job in done):
                log.note(f"{without} of the results that are there have no picture: for them give another --out")
        for record in log.progress(_results(plan, sd, todo, log, pictures), count, "evaluate"):
            if "values" in record or known.get(record["key"], {}).get("error") != record["error"]:
                writer.append(record)
            if over():
                break
    finally:
        writer.close()


def _results(
    plan: Plan, sd: StableDiffusion, todo: list[list[Job]], log: Listener, pictures: Path | None
) -> Iterator[dict]:
    for jobs in filter(None, todo):
        guidance = jobs[0].pair.guidance
        o = None
        before = None
        broken = None
        try:
            o, before = original_of(plan, sd, jobs[0].pair)
        except Exception as error:
            if is_full(error) or (broken := explain(error)) is None:
                raise
            log.failed(f"{guidance}: {broken}")
        for job in jobs:
            pair = job.pair
            record = {"key": job.key, "pair": pair.name, "guidance": guidance, "method": job.method}
            began = time.perf_counter()
            error = broken
            if broken is None:
                try:
                    values, after = result(plan, o, before, job)
                except Exception as problem:
                    if is_full(problem) or (error := explain(problem)) is None:
                        raise
                    log.failed(f"{pair.name}, {job.method}: {error}")
            if error is not None:
                yield record | {"error": error}
                continue
            if pictures is not None:
                place = picture_place(pictures, job)
                place.parent.mkdir(parents=True, exist_ok=True)
                write_png(to_image(after), place, {})
            values = {name: round(value, DIGITS) for name, value in values.items()}
            yield record | {"values": values, "seconds": round(time.perf_counter() - began, 2)}


def picture_place(pictures: Path, job: Job) -> Path:
    return pictures / job.pair.name / f"{job.method}-{job.key[:8]}.png"


def original_of(plan: Plan, sd: StableDiffusion, pair: Pair) -> tuple[Original, Tensor]:
    """The guidance, and its picture [1, 3, H, W] as 8 bits hold it."""
    size = plan.size or sd.size
    if pair.image is None:
        scale = UNTOLD_SCALE if pair.scale is None else pair.scale
        o = Original.from_text(sd, pair.source, Taking(size=size, seed=seed_of(pair), source_scale=scale))
        return o, _levels(o.picture(plan.edit))
    picture = to_tensor(fit(read_image(pair.image), size, sd.multiple))
    settings = [METHODS[RUNS[name].method].settings for name in plan.methods if name != RECONSTRUCTION]
    keep = PnP.given(plan.advised) if any(issubclass(s, PnP) for s in settings) else None
    taking = Taking(size=size, seed=seed_of(pair))
    return Original.from_picture(sd, picture, pair.source, taking, plan.inversion, keep), picture


def result(plan: Plan, o: Original, before: Tensor, job: Job) -> tuple[dict[str, float], Tensor]:
    if job.method == RECONSTRUCTION:
        G = o.guidance(plan.edit)
        round_trip = _levels(o.sd.decode(G.x_0))
        again = _levels(reconstruct(o.sd, G))
        return {"psnr": psnr(to_image(again), to_image(round_trip)), "ssim": ssim(again, round_trip)}, again
    after = _levels(run_on(RUNS[job.method], o, job.pair, plan.given, plan.advised))
    return plan.metrics(Case(job.pair, before, after)), after


def _levels(x: Tensor) -> Tensor:
    return to_tensor(to_image(x))
