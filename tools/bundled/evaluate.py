"""Step 7: what the bundled model can do, in numbers. → weights/bundled/EVALUATION.md

The VAE, the classifier, pictures from text, the translations, and what the paper claims of them. Every measurement is
kept as a record in weights/bundled/records, known by the weights: broken off, it goes on where it was. Several
processes share the work with `--shard 0/2` and `--shard 1/2`; the table is made by the one that finds all done.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from minipnp.app.log import Log
from minipnp.app.models import identity
from minipnp.ddim import sample, timesteps
from minipnp.files.atomic import write_text_atomic
from minipnp.files.images import psnr, to_image
from minipnp.files.loading import load, pick_device, pick_dtype
from minipnp.guidance import Inversion
from minipnp.measure import benchmarks, metrics, records, report
from minipnp.measure.evaluation import RECONSTRUCTION, STEPS, Plan, carry_out
from minipnp.measure.icons import ASPECTS, THRESHOLD, Classifier, foreground, iou, load_classifier
from minipnp.measure.runs import CLOSER
from minipnp.model import StableDiffusion
from minipnp.pnp import PnP
from tools.bundled import benchmark, run
from tools.bundled.benchmark import Said
from tools.bundled.claims import claims
from tools.bundled.data import COLOUR_WORDS, CONCEPT_WORDS, STYLE_WORDS, Icons, draw, generator, placed, plain
from tools.bundled.export import FOLDER
from tools.bundled.fetch import DATA
from tools.bundled.memory import Memory
from tools.bundled.train import prepare
from tools.bundled.training import Clock

RECORDS = FOLDER / "records"
BATCH = 16  # pictures that are drawn from text at once
LEAST = {"style": 0.9, "concept": 0.9, "colour": 0.99}  # of what the classifier sees in icons that it was trained on
METHODS = (
    "pnp", "pnp-without-f", "pnp-without-A", "pnp-without-both", "pnp-f-4", "pnp-f-4-8", "pnp-f-4-11", "pnp-random",
    "pnp-negative", *(f"sdedit-{strength}" for strength in CLOSER), "ddim", RECONSTRUCTION,
)  # fmt: skip
MEASURES = ("icons", "iou", "edges", "leakage")


@dataclass(frozen=True)
class Judge:
    """The model, the icons, and who looks at the pictures."""

    sd: StableDiffusion
    classifier: Classifier
    icons: Icons
    steps: int
    scale: float
    memory: Memory

    def right(self, pictures: Tensor, said: list[Said]) -> list[dict[str, bool]]:
        """For each picture, which of its style, concept and background the classifier sees in it."""
        return [{aspect: a == b for aspect, a, b in zip(ASPECTS, words, wanted, strict=True)}
                for words, wanted in zip(self.classifier.read(pictures), said, strict=True)]  # fmt: skip

    def pictures(self, said: list[Said]) -> Tensor:
        """Real icons as they were said, [n, 3, size, size]."""
        index = [self.icons.of(s.style, s.concept) for s in said]
        return draw(self.icons, plain(index, [s.colour for s in said]))[0]


# ---------------------------------------------------------------------------------------------------------------------
# Measurements. Each yields (key, values): values of numbers and of yes and no.


def of_pictures(judge: Judge, held_out: list[Said]) -> Iterator[tuple[str, dict]]:
    """The VAE on icons held back, and the classifier and the masks on real ones."""
    for said in held_out:
        x = judge.pictures([said])
        again = to_image(judge.sd.decode(judge.sd.encode(x)))
        yield f"vae/{'/'.join(said)}", {"psnr": psnr(to_image(x), again)} | judge.memory.nearest(x, said.colour)
    for name, icons in groups(judge.icons).items():
        p = placed(icons, 4 * len(icons), generator(1, 0))._replace(icon=torch.arange(len(icons)).repeat(4))
        for first in range(0, len(p.icon), 100):
            part = type(p)(*(column[first : first + 100] for column in p))
            x, alpha = draw(icons, part)
            said = [Said(STYLE_WORDS[icons.style[i]], CONCEPT_WORDS[icons.concept[i]], COLOUR_WORDS[c])
                    for i, c in zip(part.icon, part.colour, strict=True)]  # fmt: skip
            agree = iou(foreground(x), alpha[:, 0] > 0.5).tolist()
            for i, (right, own) in enumerate(zip(judge.right(x, said), agree, strict=True)):
                near = judge.memory.nearest(x[i : i + 1], said[i].colour) if name == "known" else {}
                yield f"real/{name}/{first + i}", {**right, "iou": own, **near}


def groups(icons: Icons) -> dict[str, Icons]:
    """Real icons by what the classifier can be asked of them: known, both; concept, style: that is held back."""
    return {
        "known": icons.finished(),
        "concept": icons[~icons.known_concepts() & icons.finished_styles()],
        "style": icons[~icons.known_styles() & icons.finished_concepts()],
    }


@torch.no_grad()
def from_text(sd: StableDiffusion, said: list[Said], seeds: Iterable[int], steps: int, scale: float) -> Tensor:
    """Pictures [n, 3, size, size] from captions, with classifier-free guidance, all at once."""
    side = sd.unet.config.size
    text, null = sd.embed(*(s.caption for s in said)), sd.embed("")

    def eps(x: Tensor, t: int) -> Tensor:
        with_text, without = sd.unet(torch.cat([x, x]), t, torch.cat([text, null.expand_as(text)])).chunk(2)
        return without + scale * (with_text - without)

    *_, (_, x_0) = sample(eps, torch.cat([sd.noise(side, side, seed) for seed in seeds]), timesteps(steps))
    return sd.decode(x_0).clamp(-1, 1)


def of_samples(judge: Judge, said: list[Said], first: int) -> Iterator[tuple[str, dict]]:
    numbers = range(first, first + len(said))
    pictures = from_text(judge.sd, said, numbers, judge.steps, judge.scale)
    for number, x, s, right in zip(numbers, pictures, said, judge.right(pictures, said), strict=True):
        yield f"sample/{number}", right | judge.memory.nearest(x[None], s.colour)


# ---------------------------------------------------------------------------------------------------------------------
# The table.


def shares(rows: list[dict], aspects: Iterable[str] = ASPECTS) -> str:
    """Three cells: how often style, concept and background are right."""
    return " | ".join(f"{fmean(r[a] for r in rows):.3f}" if a in aspects and rows else "" for a in ASPECTS)


def decibels(rows: list[dict]) -> str:
    values = [r["psnr"] for r in rows]
    if not values:
        return "not measured yet"
    return f"{fmean(values):.1f} dB (least {min(values):.1f}, of {len(values)})"


def table(records: dict[str, dict], loops: list[dict], translations: list[dict], judge: Judge, command: str) -> str:
    """Markdown. records: of all units. loops: PSNR of the pictures that were inverted and sampled again.

    translations: what Plug-and-Play's pictures were measured as.
    """

    def of(prefix: str) -> list[dict]:
        return [values for key, values in records.items() if key.startswith(prefix + "/")]

    known, new_concept, new_style, samples, held_out = map(
        of, ("real/known", "real/concept", "real/style", "sample", "vae")
    )
    masks = fmean(r["iou"] for r in of("real")) if of("real") else nan
    lines = [
        "# What the bundled model does, in numbers", "",
        f"Made by `{command}`: {judge.steps} steps, guidance scale {judge.scale:g}. The lists are in "
        "`tools/bundled/benchmark.json`.", "",
        "| | measured | wanted |", "|---|---|---|",
        f"| VAE, icons held back | {decibels(held_out)} | ≥ 33 dB |",
        f"| inverted and sampled again, against the VAE's round trip | {decibels(loops)} | ≥ 35 dB |",
    ]  # fmt: skip
    for aspect, least in LEAST.items():
        drawn, real = (fmean(r[aspect] for r in rows) if rows else nan for rows in (samples, known))
        lines.append(f"| {aspect} recognised in pictures from text, as a share of that in the icons trained on "
                     f"| {drawn / max(real, 1e-9):.3f} | ≥ {least} |")  # fmt: skip
    lines += [f"| mask by colour (threshold {THRESHOLD}) against the true one, real icons | IoU {masks:.3f} | |", ""]
    lines += ["| the classifier recognises | style | concept | background | pictures |", "|---|---|---|---|---|"]
    judged = {
        "real icons that it was trained on, placed otherwise": (known, ASPECTS),
        "real icons of held-out concepts": (new_concept, ("style", "colour")),
        "real icons of the held-out style": (new_style, ("concept", "colour")),
        "pictures from text": (samples, ASPECTS),
    }
    lines += [f"| {name} | {shares(rows, aspects)} | {len(rows)} |" for name, (rows, aspects) in judged.items()]
    near = {
        "the icons themselves, placed otherwise": known,
        "pictures from text": samples,
        "translations by Plug-and-Play": translations,
        "real icons held back": held_out,
    }
    lines += ["", "| nearest of the icons trained on (memory.py) | overlap of outlines | cosine of features |",
              "|---|---|---|"]  # fmt: skip
    lines += [f"| {name} | {nearness(rows, 'nearest_iou')} | {nearness(rows, 'nearest_cosine')} |"
              for name, rows in near.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def nearness(rows: list[dict], name: str) -> str:
    values = [r[name] for r in rows if name in r]
    return f"{fmean(values):.3f}" if values else ""


# ---------------------------------------------------------------------------------------------------------------------


def fingerprint(model: Path, *settings) -> str:
    digest = hashlib.sha256(repr(settings).encode() + benchmark.PLACE.read_bytes())
    for file in sorted(model.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def measure(
    units: dict[str, partial], writer: records.Writer, folder: Path, part: int, parts: int, clock: Clock
) -> None:
    """This process's part of the units, from where it was, until all is done or the clock is over."""
    done, _ = records.read_records(folder)
    ours = [name for name in list(units)[part::parts] if f"unit/{name}" not in done]
    for name in tqdm(ours, "icons and pictures from text", file=sys.stderr):
        for key, values in units[name]():
            if key not in done:
                rounded = {name: round(x, 4) if isinstance(x, float) else x for name, x in values.items()}
                writer.append({"key": key, "values": rounded})
                if clock.over():
                    return
        writer.append({"key": f"unit/{name}", "values": {}})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, default=FOLDER)
    add("--data", type=Path, default=DATA)
    add("--records", type=Path, default=RECORDS, help="of measurements (default: %(default)s)")
    add("--device")
    add("--dtype", help="default: float16 on CUDA, else float32")
    add("--steps", type=int, help="default: 50")
    add("--inversion-steps", type=int, default=Inversion().steps)
    add("--minutes", type=float, help="stop after so many")
    add("--limit", type=int, help="only so many pairs, samples and pictures, to try it; then the table is only shown")
    add("--table", action="store_true", help="make the table of what there is so far, measure nothing")
    add("--shard", default="0/1", metavar="I/N", help="this process's part of the work (default: %(default)s)")
    args = parser.parse_args(argv)

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    sd = load(args.model, device=device, dtype=dtype)
    prepare(args.data, sd.size)
    classifier = args.model / "classifier"
    steps, scale = args.steps or STEPS, sd.advised(PnP).scale
    icons, judging = Icons.read(args.data, sd.size), load_classifier(classifier)
    memory = Memory(icons.finished(), judging)
    judge = Judge(sd, judging, icons, steps, scale, memory)
    lists = {name: benchmarks.drawn_evenly(rows, args.limit) for name, rows in benchmark.read().items()}
    folder = args.records / fingerprint(args.model, steps, scale, str(dtype), args.limit)
    part, parts = map(int, args.shard.split("/"))
    clock = Clock(args.minutes)

    units = {"pictures": partial(of_pictures, judge, lists["pictures"])}
    for i in range(0, len(lists["samples"]), BATCH):
        units[f"samples {i}"] = partial(of_samples, judge, lists["samples"][i : i + BATCH], i)
    if not args.table:
        writer = records.Writer(folder, f"{part}of{parts}")
        try:
            measure(units, writer, folder, part, parts, clock)
        finally:
            writer.close()
    measures = metrics.load_metrics(MEASURES, "bundled", classifier=classifier)
    nearest = {"memory": lambda case: memory.nearest(case.after, case.pair.asked[2])}
    plan = Plan(
        benchmarks.read_benchmark(str(benchmark.SHIPPED["pairs"])).some(args.limit), METHODS,
        replace(measures, measures=measures.measures | nearest), identity(sd),
        Inversion(steps=args.inversion_steps), args.steps, advised=sd.advice.options,
    )  # fmt: skip
    if not args.table and not clock.over():
        carry_out(plan, sd, args.records / "translations", Log(), part, parts, over=clock.over)

    measured, _ = records.read_records(folder)
    translations, _ = records.read_records(args.records / "translations")
    found, _, missing = report.results(plan, translations)
    if not args.table and (missing or not all(f"unit/{name}" in measured for name in units)):
        return
    command = " ".join(["python -m tools.bundled.evaluate", *(argv if argv is not None else sys.argv[1:])])
    command = re.sub(r" --(shard|minutes|device|records|data|model) \S+| --table", "", command)
    values = {key: record["values"] for key, record in measured.items()}
    undone = sum(f"unit/{name}" not in measured for name in units)
    loops, ours = ([row.values for row in found[name].values()] for name in (RECONSTRUCTION, "pnp"))
    text = table(values, loops, ours, judge, command)
    if undone or missing:
        text += f"\n**Not done yet: {undone} of {len(units)} batches of pictures, {missing} edits.**\n"
    text += "\n" + report.markdown(plan, translations, command).replace("# ", "## ", 1)
    if ours:
        text += "\n" + claims(found, {pair.name: pair.kind for pair in plan.benchmark.pairs})
    print(text)
    if args.limit is None:
        write_text_atomic(text, args.model / "EVALUATION.md")


if __name__ == "__main__":
    run(main)
