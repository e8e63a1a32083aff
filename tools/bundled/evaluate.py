"""Step 7: what the bundled model can do, in numbers. → weights/bundled/EVALUATION.md

Every measurement is a line of a file of records, kept by the weights' fingerprint: broken off, it goes on where it was.
Several processes share the work with `--shard 0/4` … `--shard 3/4`; the table is made by the one that finds all done.
"""

import argparse
import contextlib
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minipnp.ddim import sample, timesteps
from minipnp.guidance import Guidance, Inversion
from minipnp.images import psnr, to_image, write_text_atomic
from minipnp.loading import find, load_networks, pick_device, pick_dtype
from minipnp.methods.sdedit import STRENGTHS, SDEdit, sdedit
from minipnp.model import StableDiffusion
from minipnp.pipeline import guidance_from_picture, reconstruct, translate
from minipnp.pnp import PnP
from tools.bundled import benchmark, run
from tools.bundled.benchmark import Pair, Said
from tools.bundled.captions import Tokens
from tools.bundled.classifier import Classifier
from tools.bundled.classifier import load as load_classifier
from tools.bundled.data import COLOUR_WORDS, CONCEPT_WORDS, STYLE_WORDS, Icons, draw, generator, placed, plain
from tools.bundled.export import FOLDER
from tools.bundled.fetch import DATA
from tools.bundled.masks import THRESHOLD, foreground, iou
from tools.bundled.train import prepare
from tools.bundled.training import WORK, Clock

BATCH = 16  # pictures that are inverted, or drawn from text, at once
ASPECTS = ("style", "concept", "colour")
LEAST = {"style": 0.85, "colour": 0.95, "concept": 0.7}  # of the classifier's own accuracy on real icons
ABLATIONS = {
    "Plug-and-Play": {},
    "without f": {"f_layers": ()},
    "without A": {"A_layers": ()},
    "without both": {"f_layers": (), "A_layers": ()},
}
METHODS = [*ABLATIONS, *(f"SDEdit {strength}" for strength in STRENGTHS)]


@dataclass(frozen=True)
class Judge:
    """The model, the icons, and who looks at the pictures."""

    sd: StableDiffusion
    classifier: Classifier
    icons: Icons
    inversion: Inversion
    steps: int
    scale: float

    @torch.no_grad()
    def right(self, pictures: Tensor, said: list[Said]) -> list[dict[str, bool]]:
        """For each picture, which of its style, concept and background the classifier sees in it."""
        seen = self.classifier(pictures).words()
        return [{aspect: a == b for aspect, a, b in zip(ASPECTS, words, wanted, strict=True)}
                for words, wanted in zip(seen, said, strict=True)]  # fmt: skip

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
        yield f"vae/{'/'.join(said)}", {"psnr": psnr(to_image(x), to_image(judge.sd.decode(judge.sd.encode(x))))}
    icons = judge.icons
    p = placed(icons, 4 * len(icons), generator(1, 0))._replace(icon=torch.arange(len(icons)).repeat(4))
    styles, concepts = icons.known_styles(), icons.known_concepts()
    for first in range(0, len(p.icon), 100):
        part = type(p)(*(column[first : first + 100] for column in p))
        x, alpha = draw(icons, part)
        said = [Said(STYLE_WORDS[icons.style[i]], CONCEPT_WORDS[icons.concept[i]], COLOUR_WORDS[c])
                for i, c in zip(part.icon, part.colour, strict=True)]  # fmt: skip
        agree = iou(foreground(x), alpha[:, 0] > 0.5).tolist()
        for i, (index, right, own) in enumerate(zip(part.icon, judge.right(x, said), agree, strict=True)):
            missing = [name for name, known in (("style", styles), ("concept", concepts)) if not known[index]]
            yield f"real/{'+'.join(missing) or 'known'}/{first + i}", {**right, "iou": own}


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
    for number, right in zip(numbers, judge.right(pictures, said), strict=True):
        yield f"sample/{number}", right


def of_guidance(judge: Judge, pairs: list[Pair], first: int, done: set[str]) -> Iterator[tuple[str, dict]]:
    """Inverts the guidance pictures of these pairs together, then translates each. first: the first pair's number."""
    sd, said = judge.sd, list(dict.fromkeys(pair.guidance for pair in pairs))
    pictures = judge.pictures(said)
    G = guidance_from_picture(sd, pictures, judge.steps, judge.inversion)
    round_trip, again = sd.decode(G.x_0), reconstruct(sd, G)
    for i, guidance in enumerate(said):
        yield f"loop/{'/'.join(guidance)}", {"psnr": psnr(to_image(round_trip[i]), to_image(again[i]))}
    layout = foreground(pictures)
    for number, pair in enumerate(pairs, first):
        i = said.index(pair.guidance)
        for method in METHODS:
            if (key := f"translation/{number}/{method}") not in done:
                picture = translated(judge, one(G, i), pair.target.caption, method, number).clamp(-1, 1)
                (right,) = judge.right(picture, [pair.target])
                kept = iou(foreground(picture), layout[i : i + 1]).item()
                yield key, {"kind": pair.kind, "held_out": pair.held_out, "iou": kept, **right}


def one(G: Guidance, i: int) -> Guidance:
    """One of the pictures that were inverted together."""
    return replace(
        G, latents={t: x[i : i + 1] for t, x in G.latents.items()}, x_T=G.x_T[i : i + 1], x_0=G.x_0[i : i + 1]
    )


def translated(judge: Judge, G: Guidance, prompt: str, method: str, seed: int) -> Tensor:
    sd = judge.sd
    if method in ABLATIONS:
        return translate(sd, G, [prompt], settings=PnP(steps=judge.steps, scale=judge.scale, **ABLATIONS[method]))
    settings = SDEdit(judge.steps, float(method.removeprefix("SDEdit ")), judge.scale)
    z = sd.noise(*G.x_0.shape[2:], seed)
    *_, (_, x_0) = sdedit(sd.unet, G.x_0, z, sd.embed(prompt), sd.embed(""), settings)
    return sd.decode(x_0)


# ---------------------------------------------------------------------------------------------------------------------
# The table.


def mean(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    x = torch.tensor(list(values), dtype=torch.float64)
    return x.mean().item(), x.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan


def fidelity(record: dict) -> float:
    """Text fidelity: the share of style, concept and background that is right."""
    return sum(record[aspect] for aspect in ASPECTS) / len(ASPECTS)


def shares(rows: list[dict], aspects: Iterable[str] = ASPECTS) -> str:
    """Three cells: how often style, concept and background are right."""
    return " | ".join(f"{mean([r[a] for r in rows])[0]:.3f}" if a in aspects and rows else "" for a in ASPECTS)


def decibels(rows: list[dict]) -> str:
    values = [r["psnr"] for r in rows]
    return f"{mean(values)[0]:.1f} dB (least {min(values):.1f}, of {len(values)})"


def table(records: dict[str, dict], judge: Judge, command: str) -> str:
    """Markdown. records: of all units."""

    def of(prefix: str) -> list[dict]:
        return [values for key, values in records.items() if key.startswith(prefix + "/")]

    known, new_concept, new_style, samples = map(of, ("real/known", "real/concept", "real/style", "sample"))
    new = {"style": new_concept, "concept": new_style, "colour": new_concept + new_style}
    masks = mean([r["iou"] for r in of("real")])[0]
    lines = [
        "# What the bundled model does, in numbers", "",
        f"Made by `{command}`: {judge.steps} steps, guidance scale {judge.scale:g}, inversion in "
        f"{judge.inversion.steps} steps. The lists are in `tools/bundled/benchmark.json`.", "",
        "| | measured | wanted |", "|---|---|---|",
        f"| VAE, icons held back | {decibels(of('vae'))} | ≥ 28 dB |",
        f"| inverted and sampled again, against the VAE's round trip | {decibels(of('loop'))} | ≥ 25 dB |",
    ]  # fmt: skip
    for aspect, least in LEAST.items():
        drawn, *real = (mean([r[aspect] for r in rows])[0] for rows in (samples, new[aspect], known))
        of_new, of_known = (drawn / max(accuracy, 1e-9) for accuracy in real)
        lines.append(f"| {aspect} recognised in pictures from text, as a share of that in real icons held back "
                     f"(in those trained on) | {of_new:.3f} ({of_known:.3f}) | ≥ {least} |")  # fmt: skip
    lines += [f"| mask by colour (threshold {THRESHOLD}) against the true one, real icons | IoU {masks:.3f} | |", ""]
    lines += ["| the classifier recognises | style | concept | background | pictures |", "|---|---|---|---|---|"]
    judged = {
        "real icons that it was trained on, placed otherwise": (known, ASPECTS),
        "real icons of held-out concepts": (new_concept, ("style", "colour")),
        "real icons of the held-out style": (new_style, ("concept", "colour")),
        "pictures from text": (samples, ASPECTS),
    }
    lines += [f"| {name} | {shares(rows, aspects)} | {len(rows)} |" for name, (rows, aspects) in judged.items()]
    return "\n".join([*lines, "", *translations(records)]) + "\n"


def translations(records: dict[str, dict]) -> list[str]:
    """The methods side by side, and the paper's claim."""
    by_method: dict[str, dict[int, dict]] = {method: {} for method in METHODS}
    for key, values in records.items():
        if key.startswith("translation/"):
            _, number, method = key.split("/")
            by_method[method][int(number)] = values
    ours, groups = by_method["Plug-and-Play"], {method: list(rows.values()) for method, rows in by_method.items()}
    for r in ours.values():
        groups.setdefault(f"Plug-and-Play: {r['kind']}", []).append(r)
        groups.setdefault(f"Plug-and-Play: guidance {'held back' if r['held_out'] else 'trained on'}", []).append(r)

    lines = ["| translation | mask IoU | style | concept | background | text fidelity | pairs |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, rows in groups.items():
        kept, said = ("{:.3f} ± {:.3f}".format(*mean(x)) for x in ([r["iou"] for r in rows], map(fidelity, rows)))
        lines.append(f"| {name} | {kept} | {shares(rows)} | {said} | {len(rows)} |")
    lines += ["", "Plug-and-Play minus SDEdit, pair by pair, ± two standard errors:", ""]
    for method in METHODS[len(ABLATIONS) :]:
        more = {}
        for name, measure in (("IoU", lambda r: r["iou"]), ("text fidelity", fidelity)):
            middle, error = mean([measure(ours[n]) - measure(r) for n, r in by_method[method].items()])
            more[name] = (middle, 2 * error)
        holds = any(d > e for d, e in more.values()) and not any(d < -e for d, e in more.values())
        text = ", ".join(f"{name} {d:+.3f} ± {e:.3f}" for name, (d, e) in more.items())
        lines.append(f"- {method}: {text}: {'above on one axis, below on none' if holds else 'it does not hold'}.")
    return lines


# ---------------------------------------------------------------------------------------------------------------------


def fingerprint(model: Path, *settings) -> str:
    digest = hashlib.sha256(repr(settings).encode() + benchmark.PLACE.read_bytes())
    for file in sorted(model.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read_records(folder: Path) -> dict[str, dict]:
    """Of all processes. The last line of one that was broken off may be a part of one."""
    records = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                key, values = json.loads(line)
                records[key] = values
    return records


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, default=FOLDER)
    add("--data", type=Path, default=DATA)
    add("--work", type=Path, default=WORK, help="records (default: %(default)s)")
    add("--device")
    add("--dtype", help="default: float16 on CUDA, else float32")
    add("--steps", type=int, default=PnP().steps)
    add("--scale", type=float, default=PnP().scale)
    add("--inversion-steps", type=int, default=Inversion().steps)
    add("--minutes", type=float, help="stop after so many")
    add("--limit", type=int, help="only so many pairs, samples and pictures, to try it; then the table is only shown")
    add("--shard", default="0/1", metavar="I/N", help="this process's part of the work (default: %(default)s)")
    args = parser.parse_args(argv)

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    source = find(args.model)
    prepare(args.data, source.configs["unet"].size * source.configs["vae"].factor)
    sd = StableDiffusion(*load_networks(source, device, dtype), Tokens.read(args.data), source, device, dtype)
    inversion = Inversion(steps=args.inversion_steps, checks=0)
    judge = Judge(sd, load_classifier(args.model), Icons.read(args.data, sd.size), inversion, args.steps, args.scale)
    lists = {name: rows[: args.limit] for name, rows in benchmark.read().items()}
    settings = (args.steps, args.scale, args.inversion_steps, str(dtype), args.limit)
    folder = args.work / f"evaluation-{fingerprint(args.model, *settings)}"
    folder.mkdir(parents=True, exist_ok=True)

    part, parts = map(int, args.shard.split("/"))
    done, clock = set(read_records(folder)), Clock(args.minutes)
    units = {"pictures": partial(of_pictures, judge, lists["pictures"])}
    for i in range(0, len(lists["samples"]), BATCH):
        units[f"samples {i}"] = partial(of_samples, judge, lists["samples"][i : i + BATCH], i)
    for i in range(0, len(lists["pairs"]), 2 * BATCH):
        units[f"pairs {i}"] = partial(of_guidance, judge, lists["pairs"][i : i + 2 * BATCH], i, done)
    ours = [name for name in list(units)[part::parts] if f"unit/{name}" not in done]
    with (folder / f"{part}of{parts}.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")  # after what may be a part of a line
        for name in (bar := tqdm(ours, "evaluate", file=sys.stderr)):
            for key, values in units[name]():
                if key in done:
                    continue
                file.write(json.dumps([key, values]) + "\n")
                file.flush()
                bar.set_postfix_str(key)
                if clock.over():
                    return
            file.write(json.dumps([f"unit/{name}", {}]) + "\n")
    records = read_records(folder)
    if all(f"unit/{name}" in records for name in units):
        command = " ".join(["python -m tools.bundled.evaluate", *(argv if argv is not None else sys.argv[1:])])
        text = table(records, judge, re.sub(r" --(shard|minutes|device|work) \S+", "", command))
        print(text)
        if args.limit is None:
            write_text_atomic(text, args.model / "EVALUATION.md")


if __name__ == "__main__":
    run(main)
