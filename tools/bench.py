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
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from minipnp import layers, pnp
from minipnp.config import UNetConfig, VAEConfig
from minipnp.ddim import noise, timesteps
from minipnp.guidance import Guidance
from minipnp.hub import WEIGHTS
from minipnp.images import write_text_atomic
from minipnp.kept import flat
from minipnp.layers import Attention, ResBlock, Upsample, repeated
from minipnp.loading import pick_device, pick_dtype
from minipnp.pnp import PnP, plug_and_play
from minipnp.slots import Attn, Features
from minipnp.speed import compile_blocks, suit
from minipnp.unet import ATTENTIONS, UNet
from minipnp.vae import VAE
from tools.authors import Authors
from tools.bench_load import LAYOUTS, memory, stand_in
from tools.reference import like

EDIT = PnP()
SHORT = replace(EDIT, steps=3, tau_f=2 / 3, tau_A=1 / 3)  # a step of each kind
KINDS = ("f and A", "f", "none")
_F, _A = EDIT.injected_steps(EDIT.tau_f), EDIT.injected_steps(EDIT.tau_A)
COUNTS = (_A, _F - _A, EDIT.steps - _F)  # of an edit's steps
AUTHORS_INVERSION, AUTHORS_RECONSTRUCTION = 999, 999  # evaluations, by pnp-diffusers' defaults; the latter is not read
ROOT = Path(__file__).resolve().parents[1]
SMALL = UNetConfig(channels=(32, 64, 128, 128), heads=4, context=64, groups=16)
OWN, WITHOUT, ALL, KEPT = (
    "the authors' way, on diffusers",
    "minipnp without savings",
    "minipnp",
    "minipnp, features kept",
)
KEPT_COMPILED, OWN_COMPILED = "minipnp, features kept, compiled", "the authors' way, compiled"


@dataclass(frozen=True)
class Case:
    unet: UNet
    G: Guidance
    text: Tensor
    null: Tensor


# ---------------------------------------------------------------------------------------------------------------------
# The savings, each as a way to do without it. Everything else stays the code that is used.


@contextlib.contextmanager
def source_pass_in_every_step(case: Case) -> Iterator[None]:
    real = pnp.guidance_features

    def features(unet, G, i, t, s):
        if s.tap(i).last is None:
            unet(G.latents[t], t, G.texts)
        return real(unet, G, i, t, s)

    with patch.object(pnp, "guidance_features", features):
        yield


@contextlib.contextmanager
def source_pass_to_its_end(case: Case) -> Iterator[None]:
    real = UNet.tap
    with patch.object(
        UNet, "tap", lambda unet, x, t, c, tap, inject=None, stop=False: real(unet, x, t, c, tap, inject)
    ):
        yield


@contextlib.contextmanager
def softmax_in_each_branch(case: Case) -> Iterator[None]:
    def attend(q, k, v, mask=None):
        n = max(len(q), len(k), len(v))
        return F.scaled_dot_product_attention(repeated(q, n), repeated(k, n), repeated(v, n), attn_mask=mask)

    with patch.object(layers, "attend", attend):
        yield


@contextlib.contextmanager
def branches_apart_from_the_start(case: Case) -> Iterator[None]:
    real = UNet.forward

    def forward(unet, x, t, context, inject=None):
        return real(unet, x.repeat(len(context) // len(x), 1, 1, 1), t, context, inject)

    with patch.object(UNet, "forward", forward):
        yield


@contextlib.contextmanager
def q_and_k_computed_where_they_are_injected(case: Case) -> Iterator[None]:
    real = Attention.forward

    def forward(attention, x, context=None, inject=None, *more):
        if inject is not None and inject.q is not None:
            attention.q(x)
        if inject is not None and inject.k is not None:
            attention.k(x if context is None else context)
        return real(attention, x, context, inject, *more)

    with patch.object(Attention, "forward", forward):
        yield


@contextlib.contextmanager
def f_computed_where_it_is_injected(case: Case) -> Iterator[None]:
    real = ResBlock.forward

    def forward(block, x, time=None, inject=None):
        if inject is not None:
            block.f(x, time)
        return real(block, x, time, inject)

    with patch.object(ResBlock, "forward", forward):
        yield


@contextlib.contextmanager
def upsampling_as_it_is_written(case: Case) -> Iterator[None]:
    with with_quarters(case.unet, [None] * len(upsamplings(case.unet))):
        yield


# The other way about: savings that minipnp does not have, put in.


@contextlib.contextmanager
def with_quarters(unet: UNet, quarters: list[Tensor | None]) -> Iterator[None]:
    """The upsamplings folded so; None: as they are written."""
    ups = upsamplings(unet)
    before = [up.quarters for up in ups]
    for up, folded in zip(ups, quarters, strict=True):
        up.quarters = folded
    yield
    for up, folded in zip(ups, before, strict=True):
        up.quarters = folded


def folded_once(unet: UNet) -> list[Tensor]:
    """The weights that folding gives, which is done once, when loading; the network stays as it is."""
    quarters = []
    for up in upsamplings(unet):
        up.fold()
        quarters.append(up.quarters)
        up.quarters = None
    return quarters


def text_keys_and_values(case: Case) -> dict[str, Attn]:
    """Of both branches, in the order of `ddim.guided`, by layer: what the slots of cross-attention take."""
    text = torch.cat([case.text, case.null]).to(case.unet.conv_out.weight.dtype)
    by_layer = {row.layer: row.transformer.cross_attn for row in case.unet.rows if row.layer in ATTENTIONS}
    return {layer: Attn(k=a.split(a.k(text)), v=a.split(a.v(text))) for layer, a in by_layer.items()}


@contextlib.contextmanager
def with_text(M: dict[str, Attn]) -> Iterator[None]:
    real = UNet.forward

    def forward(unet, x, t, context, inject=None):
        inject = inject or Features()
        return real(unet, x, t, context, Features(inject.f, inject.A, M))

    with patch.object(UNet, "forward", forward):
        yield


def upsamplings(network: torch.nn.Module) -> list[Upsample]:
    return [module for module in network.modules() if isinstance(module, Upsample)]


UPSAMPLING = "upsampling folded"
OFF = {  # the saving: how it is done without
    "no source pass past the thresholds": source_pass_in_every_step,
    "source pass stops early": source_pass_to_its_end,
    "injected q, k not computed": q_and_k_computed_where_they_are_injected,
    "one softmax for all branches": softmax_in_each_branch,
    "branches share the start": branches_apart_from_the_start,
    "f skipped where injected": f_computed_where_it_is_injected,
    UPSAMPLING: upsampling_as_it_is_written,
}
TEXT_ONCE, FOLDED = "text keys and values once (left out)", "upsampling folded (left out on this device)"
SAVINGS = (  # (the saving, the way without it, the way with it), of which a device has those that mean something there
    *((name, name, ALL) for name in OFF),
    ("features kept", ALL, KEPT),
    ("all of these", WITHOUT, KEPT),
    (TEXT_ONCE, KEPT, TEXT_ONCE),
    (FOLDED, ALL, FOLDED),
)


# ---------------------------------------------------------------------------------------------------------------------
# The ways to make the edit: name → the latents after each step.


def ways(case: Case, theirs: dict[str, Authors], compiled: UNet | None = None) -> dict[str, Callable]:
    """theirs: by the names OWN and OWN_COMPILED. Each way, called, is an iterator of latents."""

    def ours(unet=case.unet, G=case.G, off=()):
        with contextlib.ExitStack() as stack:
            for without in off:
                stack.enter_context(without)
            for _, x in plug_and_play(unet, G, [case.text], case.null, s=SHORT):
                yield x

    G = replace(case.G, features=kept_features(case))
    folds = any(up.quarters is not None for up in upsamplings(case.unet))
    off, M = {name: without for name, without in OFF.items() if folds or name != UPSAMPLING}, text_keys_and_values(case)
    made = {
        name: lambda own=own: (x for _, x in own.edit(case.G, case.text, case.null, SHORT))
        for name, own in theirs.items()
    }
    made |= {
        WITHOUT: lambda: ours(off=[without(case) for without in off.values()]),
        ALL: ours,
        KEPT: lambda: ours(G=G),
        **{name: lambda without=without: ours(off=[without(case)]) for name, without in off.items()},
        TEXT_ONCE: lambda: ours(G=G, off=[with_text(M)]),
    }
    if not folds:
        quarters = folded_once(case.unet)
        made[FOLDED] = lambda: ours(off=[with_quarters(case.unet, quarters)])
    if compiled is not None:
        made[KEPT_COMPILED] = lambda: ours(compiled, G)
    return made


def kept_features(case: Case) -> dict[int, Features]:
    return {t: case.unet.tap(case.G.latents[t], t, case.null, tap)[1] for t, tap in SHORT.taps().items()}


def size_of_kept(case: Case) -> float:
    """GB that an edit of 50 steps keeps. A step of f and A keeps as much as any other of its kind."""
    each = [sum(x.nbytes for x in flat(features).values()) for features in kept_features(case).values()]
    return sum(n * size for n, size in zip(COUNTS[:-1], each, strict=True)) / 1e9  # the last kind keeps nothing


def _compiled(unet: UNet, backend: str) -> UNet:
    """A copy of the modules; the weights are shared."""
    with torch.device("meta"):
        copy = UNet(unet.config)
    copy.load_state_dict(unet.state_dict(), assign=True)
    suit(copy.eval().requires_grad_(False), unet.conv_out.weight.device)
    compile_blocks(copy, backend=backend)
    return copy


# ---------------------------------------------------------------------------------------------------------------------
# Measuring.


class Peak:
    """The most memory that was in use in a `with` block, beyond what was before it, in GB."""

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        self._before = self._most = memory()["RssAnon"]
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            self._most = max(self._most, memory()["RssAnon"])

    def __exit__(self, *_) -> None:
        if self.device.type == "cuda":
            self.gb = (torch.cuda.max_memory_allocated(self.device) - self._before) / 1e9
            return
        self._done.set()
        self._watch.join()
        self.gb = self._most - self._before


def timed(way: Callable[[], Iterator[Tensor]], device: torch.device) -> tuple[list[float], Tensor]:
    """Seconds of each step, and the last latent."""
    _wait(device)
    seconds, began = [], time.perf_counter()
    for last in way():
        _wait(device)
        seconds.append(time.perf_counter() - began)
        x, began = last, time.perf_counter()
    return seconds, x


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


@torch.no_grad()
def measure(config: UNetConfig, side: int, rounds: int, device, dtype, backend: str | None = None) -> dict:
    """All ways at latents of side × side cells. Seconds of steps by way and kind, differences, peaks, evaluations."""
    torch.manual_seed(0)
    unet = random_unet(config, device, dtype)
    x_0, x_T = (torch.randn(1, 4, side, side).to(device) for _ in range(2))
    null, text = (torch.randn(1, 77, config.context).to(device, dtype) for _ in range(2))
    latents = {t: noise(x_0, torch.randn(1, 4, side, side).to(device), t) for t in timesteps(SHORT.steps)}
    case = Case(unet, Guidance(latents, x_T, x_0, null), text, null)
    networks, theirs = {"minipnp": unet, "diffusers": like(unet).to(device)}, {OWN: Authors(like(unet).to(device))}
    if backend:
        networks |= {"minipnp, compiled": _compiled(unet, backend), "diffusers, compiled": like(unet).to(device)}
        theirs[OWN_COMPILED] = Authors(like(unet).to(device))
        for network in (networks["diffusers, compiled"], theirs[OWN_COMPILED].unet):
            network.compile(backend=backend, dynamic=False)
    made = ways(case, theirs, networks.get("minipnp, compiled"))
    one = {
        name: lambda network=network: iter([network(x_0.to(dtype), 501, null)]) for name, network in networks.items()
    }

    seconds = {name: {kind: [] for kind in KINDS} for name in made}
    evaluations = {name: [] for name in one}
    peaks, results, difference, changed = {}, {}, {}, {}
    for name, way in (made | one).items():
        # A first call is slower: on the CPU by so little that the median of three rounds does without it.
        if device.type != "cpu" or rounds < 3 or name in (OWN, ALL, *one) or "compiled" in name:
            timed(way, device)
    for done in range(1, rounds + 1):
        for name, way in made.items():
            with Peak(device) as peak:
                times, results[name] = timed(way, device)
            peaks[name] = max(peak.gb, peaks.get(name, 0.0))
            for kind, value in zip(KINDS, times, strict=True):
                seconds[name][kind].append(value)
        for name, evaluate in one.items():
            evaluations[name] += timed(evaluate, device)[0]
        for name, x in results.items():
            difference[name] = max(largest_difference(x, results[OWN]), difference.get(name, 0.0))
        for name, without, with_it in SAVINGS:
            if {without, with_it} <= made.keys():
                apart = largest_difference(results[with_it], results[without])
                changed[name] = max(apart, changed.get(name, 0.0))
        print(f"  round {done} of {rounds}", file=sys.stderr, flush=True)
    for name in peaks.keys() & {KEPT, KEPT_COMPILED, TEXT_ONCE}:
        peaks[name] += size_of_kept(case)
    flops = FlopCounterMode(display=False)
    with flops:
        unet(x_0, 501, null)
    steps = {name: {kind: median(values) for kind, values in kinds.items()} for name, kinds in seconds.items()}
    return {
        "pixels": 8 * side,
        "seconds": seconds,
        "steps": steps,
        "edit": {
            name: sum(n * kinds[kind] for n, kind in zip(COUNTS, KINDS, strict=True)) for name, kinds in steps.items()
        },
        "tflop": operations(config, side, device),
        "evaluation": {name: median(values) for name, values in evaluations.items()},
        "evaluation_seconds": evaluations,
        "gflop": flops.get_total_flops() / 1e9,
        "decoding": decoding(config, side, rounds, device, dtype),
        "peak_gb": peaks,
        "difference": difference,
        "changed": changed,
    }


def largest_difference(x: Tensor, y: Tensor) -> float:
    """Of the values, as a share of y's largest."""
    return ((x - y).abs().max() / y.abs().max()).item()


@torch.no_grad()
def decoding(config: UNetConfig, side: int, rounds: int, device, dtype) -> dict[str, float]:
    """Seconds of the VAE's decoder, its upsampling as it is written and folded: medians, after a run of each."""
    vae = VAE(VAEConfig() if config == UNetConfig() else replace(VAEConfig(), channels=(32, 64, 64, 64), groups=16))
    vae, x_0, taken = suit(vae.eval().to(device, dtype), device), torch.randn(1, 4, side, side).to(device), {}
    for done in range(rounds + 1):
        for way in ("as it is written", "folded"):
            for up in upsamplings(vae):
                up.quarters = None
                if way == "folded":
                    up.fold()
            _wait(device)
            began = time.perf_counter()
            vae.decode(x_0)
            _wait(device)
            if done:
                taken.setdefault(way, []).append(time.perf_counter() - began)
    return {way: median(times) for way, times in taken.items()}


@torch.no_grad()
def operations(config: UNetConfig, side: int, device: torch.device) -> dict[str, float]:
    """TFLOP of an edit of 50 steps, by way, of the network as this device has it: exact, on tensors without numbers.

    Products only, as FLOPs are counted: what a softmax costs is not in it.
    """
    with torch.device("meta"):
        unet = suit(UNet(config).eval(), device)
        x, text = torch.empty(1, 4, side, side), torch.empty(1, 77, config.context)
        latents = dict.fromkeys(timesteps(SHORT.steps), x)
        case = Case(unet, Guidance(latents, x, x, text), text, text)
        counted = {}
        for name, way in ways(case, {OWN: Authors(like(unet))}).items():
            total, steps = 0.0, way()
            for n in COUNTS:
                with FlopCounterMode(display=False) as flops:
                    next(steps)
                total += n * flops.get_total_flops() / 1e12
            counted[name] = total
            for _ in steps:
                pass
    return counted


def random_unet(config: UNetConfig, device: torch.device, dtype: torch.dtype) -> UNet:
    """PyTorch's own random beginnings, of which a deep stack keeps its values in range."""
    unet = UNet(config).eval().requires_grad_(False).to(device, dtype)
    return suit(unet, device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of the best of a few products of large matrices: what the arithmetic alone could reach."""
    n = 8192 if device.type == "cuda" else 2048
    a, b, best = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype), 0.0
    for _ in range(8):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - began) / 1e9)
    return best


IMPORTS = {  # what a fresh process does
    "Python alone": "",
    "torch": "import torch",
    "all that a translation needs": "import minipnp.commands, minipnp.tokenizer; minipnp.tokenizer.Tokenizer()",
    "all of open_clip, beside it": "import open_clip",
}
READY = "import minipnp; sd = minipnp.load({!r}, device={!r}, dtype={!r}); sd.embed('a cow')"
PEAK = """
import torch, minipnp
from tools.bench_load import memory
sd = minipnp.load({model!r}, device={device!r}, dtype={dtype!r}, low_memory={low_memory})
edit = minipnp.PnP(steps={steps})
G = minipnp.guidance_from_picture(sd, torch.zeros(1, 3, sd.size, sd.size), {steps}, keep=edit)
minipnp.translate(sd, G, ["a cow"], settings=edit)
print(torch.cuda.max_memory_allocated(sd.device) / 1e9 if sd.device.type == "cuda" else memory()["VmHWM"])
"""


@contextlib.contextmanager
def model_for(small: bool, dtype: torch.dtype) -> Iterator[str]:
    """The bundled model, or a stand-in for SD-1.5: the published headers, and holes for numbers, which take no room on
    the disk. So what a disk costs is not in what is measured with it.
    """
    if small:
        yield str(WEIGHTS / "bundled")
        return
    layout = "components, fp16 → fp32" if dtype == torch.float16 else "components, fp32 (text encoder misaligned)"
    with tempfile.TemporaryDirectory() as folder:
        for file, header in LAYOUTS[layout].items():
            stand_in(Path(folder) / file, header)
        yield folder


def start_up(small: bool, model: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds from the start of a process, the median of three."""
    ready = READY.format(model, str(device), str(dtype).removeprefix("torch."))
    codes = ({} if small else IMPORTS) | {"ready for the first step": ready}
    return {what: median(_process(code)[0] for _ in range(1 if small else 3)) for what, code in codes.items()}


def whole_peaks(model: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GB of a whole translation in a process of its own, weights included: of a picture of the model's own size.

    On CUDA what is allocated there. On the CPU, where 50 steps take too long, the process's memory, mapped files
    included, in 3: of what 50 keep of the guidance there are two steps'.
    """
    how = {
        "model": model,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": whole_steps(device),
    }
    ways = {"all networks on the device": False, "--low-memory": True}
    return {way: float(_process(PEAK.format(low_memory=low, **how))[1]) for way, low in ways.items()}


def whole_steps(device: torch.device) -> int:
    return EDIT.steps if device.type == "cuda" else SHORT.steps


def _process(code: str) -> tuple[float, str]:
    """Seconds that a fresh process takes for it, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{code.strip()}\nended with: {done.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - began, done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Reporting.


def work() -> dict[str, int]:
    """Evaluations U of the network for a picture's first prompt and for each further one, by the exact counts.

    The authors' pnp.py reads the latents that preprocess.py has left, so a further prompt is an edit there, too.
    """
    from minipnp.run import Settings

    at_latents = replace(Settings(), inversion=replace(Settings().inversion, at="current"))
    first, exact = (sum(s.evaluations(False, 1, False, False).values()) for s in (Settings(), at_latents))
    return {
        "authors, first prompt": AUTHORS_INVERSION + AUTHORS_RECONSTRUCTION + 3 * EDIT.steps,
        "authors, a further prompt": 3 * EDIT.steps,
        "minipnp, first prompt": first,
        "minipnp, first prompt with `--inversion-at current`": exact,
        "minipnp, a further prompt": 2 * EDIT.steps,
    }


def shown(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else shown(seconds)


def whole_ways(size: dict) -> list[str]:
    """The ways that are not there for a saving's sake."""
    return [name for name in size["edit"] if name not in (*OFF, TEXT_ONCE, FOLDED)]


def table(size: dict) -> str:
    edit, lines = size["edit"], []
    evaluations = ", ".join(f"{name} {shown(seconds)}" for name, seconds in size["evaluation"].items())
    lines += [f"{size['pixels']} × {size['pixels']} pixels. One evaluation: {evaluations}.", ""]
    lines += ["| | f and A | f | none | edit of 50 steps | ratio | peak, GB | difference |", "|---|" + "---:|" * 7]
    for name in whole_ways(size):
        steps = " | ".join(shown(size["steps"][name][kind]) for kind in KINDS)
        lines.append(
            f"| {name} | {steps} | {shown(edit[name])} | {edit[OWN] / edit[name]:.2f} | {size['peak_gb'][name]:.2f} "
            f"| {size['difference'][name]:.0e} |"
        )
    lines += [
        "",
        "| saving | edit without it | with it | saved | of the products | difference |",
        "|---|" + "---:|" * 5,
    ]
    for name, without, with_it in SAVINGS:
        if name not in size["changed"]:
            continue
        time, products = (1 - measure[with_it] / measure[without] for measure in (edit, size["tflop"]))
        cells = f"{shown(edit[without])} | {shown(edit[with_it])} | {time:.1%} | {products:.1%}"
        lines.append(f"| {name} | {cells} | {size['changed'][name]:.0e} |")
    written, folded = map(shown, size["decoding"].values())
    lines += ["", f"The VAE's decoder: {written}, with its upsampling folded {folded}."]
    return "\n".join(lines)


def whole(size: dict, counts: dict[str, int]) -> str:
    """A translation from the picture to the latent, from the measured parts and the exact counts."""
    edit, one = size["edit"], size["evaluation"]
    first = (AUTHORS_INVERSION + AUTHORS_RECONSTRUCTION) * one["diffusers"] + edit[OWN]
    theirs = {"first prompt": first, "first prompt with `--inversion-at current`": first, "a further prompt": edit[OWN]}
    lines = ["| a picture's | the authors' way | minipnp | ratio |", "|---|---:|---:|---:|"]
    for prompt, own in theirs.items():
        seconds = (counts[f"minipnp, {prompt}"] - 2 * EDIT.steps) * one["minipnp"] + edit[KEPT]
        lines.append(f"| {prompt} | {minutes(own)} | {minutes(seconds)} | {own / seconds:.3g} |")
    return "\n".join(lines)


def plot(sizes: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(sizes), figsize=(5.6 * len(sizes), 3.4), squeeze=False)
    colours = {OWN: "#b5473c", OWN_COMPILED: "#d08a80", WITHOUT: "#8fa3b8", ALL: "#3a6ea5", KEPT: "#1d3f66"}
    for ax, size in zip(axes[0], sizes, strict=True):
        names = whole_ways(size)
        seconds = [size["edit"][name] for name in names]
        bars = ax.barh(range(len(names)), seconds, color=[colours.get(name, "#0f2038") for name in names])
        ax.set_yticks(range(len(names)), names if ax is axes[0][0] else [""] * len(names))
        ax.invert_yaxis()
        for bar, value in zip(bars, seconds, strict=True):
            label = f" {shown(value)} · {seconds[0] / value:.2f}×"
            ax.text(value, bar.get_y() + bar.get_height() / 2, label, va="center")
        ax.set_xlim(0, max(seconds) * 1.5)
        ax.set_title(f"{size['pixels']} × {size['pixels']} pixels")
        ax.set_xlabel("seconds for an edit of 50 steps")
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
