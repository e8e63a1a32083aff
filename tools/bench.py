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
from minipnp.kept import flat
from minipnp.layers import ResBlock, Upsample, repeated
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
KEPT_COMPILED = "minipnp, features kept, compiled"


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
    ups = [module for module in case.unet.modules() if isinstance(module, Upsample)]
    folded = [up.quarters for up in ups]
    for up in ups:
        up.quarters = None
    yield
    for up, quarters in zip(ups, folded, strict=True):
        up.quarters = quarters


@contextlib.contextmanager
def text_keys_and_values_once(case: Case) -> Iterator[None]:
    """The other way about: a saving that minipnp does not have, put in by the slots of cross-attention."""
    real, made = UNet.forward, {}

    def forward(unet, x, t, context, inject=None):
        if len(context) not in made:
            by_layer = {row.layer: row.transformer.cross_attn for row in unet.rows if row.layer in ATTENTIONS}
            text = context.to(unet.conv_out.weight.dtype)
            made[len(context)] = {at: Attn(k=a.split(a.k(text)), v=a.split(a.v(text))) for at, a in by_layer.items()}
        inject = inject or Features()
        return real(unet, x, t, context, Features(inject.f, inject.A, made[len(context)]))

    with patch.object(UNet, "forward", forward):
        yield


OFF = {  # the saving: how it is done without
    "no source pass past the thresholds": source_pass_in_every_step,
    "source pass stops early": source_pass_to_its_end,
    "one softmax for all branches": softmax_in_each_branch,
    "branches share the start": branches_apart_from_the_start,
    "f skipped where injected": f_computed_where_it_is_injected,
    "upsampling folded": upsampling_as_it_is_written,
}
LEFT_OUT = {"text keys and values once (left out)": text_keys_and_values_once}
SAVINGS = (  # (the saving, the way without it, the way with it)
    *((name, name, ALL) for name in OFF),
    ("features kept", ALL, KEPT),
    ("all of these", WITHOUT, KEPT),
    *((name, ALL, name) for name in LEFT_OUT),
)


# ---------------------------------------------------------------------------------------------------------------------
# The ways to make the edit: name → the latents after each step.


def ways(case: Case, theirs: Authors, backend: str | None) -> dict[str, Callable[[], Iterator[Tensor]]]:
    def ours(unet=case.unet, G=case.G, off=()):
        with contextlib.ExitStack() as stack:
            for without in off:
                stack.enter_context(without(case))
            for _, x in plug_and_play(unet, G, [case.text], case.null, s=SHORT):
                yield x

    with_features = replace(case.G, features=kept_features(case))
    made = {
        OWN: lambda: (x for _, x in theirs.edit(case.G, case.text, case.null, SHORT)),
        WITHOUT: lambda: ours(off=OFF.values()),
        ALL: lambda: ours(),
        KEPT: lambda: ours(G=with_features),
    }
    for name, without in (OFF | LEFT_OUT).items():
        made[name] = lambda without=without: ours(off=[without])
    if backend:
        compiled = _copy(case.unet)
        compile_blocks(compiled, backend=backend)
        made[KEPT_COMPILED] = lambda: ours(compiled, G=with_features)
        other = Authors(like(case.unet).to(case.text.device))
        other.unet.compile(backend=backend, dynamic=False)
        made["the authors' way, compiled"] = lambda: (x for _, x in other.edit(case.G, case.text, case.null, SHORT))
    return made


def kept_features(case: Case) -> dict[int, Features]:
    return {t: case.unet.tap(case.G.latents[t], t, case.null, tap)[1] for t, tap in SHORT.taps().items()}


def size_of_kept(case: Case) -> float:
    """GB that an edit of 50 steps keeps. A step of f and A keeps as much as any other of its kind."""
    each = [sum(x.nbytes for x in flat(features).values()) for features in kept_features(case).values()]
    return sum(n * size for n, size in zip(COUNTS[:-1], each, strict=True)) / 1e9  # the last kind keeps nothing


def _copy(unet: UNet) -> UNet:
    """Of the modules; the weights are shared."""
    with torch.device("meta"):
        copy = UNet(unet.config)
    copy.load_state_dict(unet.state_dict(), assign=True)
    return suit(copy.eval().requires_grad_(False), unet.conv_out.weight.device)


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
    made = ways(case, Authors(like(unet).to(device)), backend)

    seconds = {name: {kind: [] for kind in KINDS} for name in made}
    peaks, results = {}, {}
    for name, way in made.items():
        if name in (OWN, ALL) or "compiled" in name:  # the others run the same kernels at the same shapes
            timed(way, device)
    for done in range(1, rounds + 1):
        for name, way in made.items():
            with Peak(device) as peak:
                times, results[name] = timed(way, device)
            peaks[name] = max(peak.gb, peaks.get(name, 0.0))
            for kind, value in zip(KINDS, times, strict=True):
                seconds[name][kind].append(value)
        print(f"  round {done} of {rounds}", file=sys.stderr, flush=True)
    for name in peaks.keys() & {KEPT, KEPT_COMPILED}:
        peaks[name] += size_of_kept(case)
    one = []
    for _ in range(max(rounds, 1)):
        _wait(device)
        began = time.perf_counter()
        unet(x_0, 501, null)
        _wait(device)
        one.append(time.perf_counter() - began)
    flops = FlopCounterMode(display=False)
    with flops:
        unet(x_0, 501, null)
    steps = {name: {kind: median(values) for kind, values in kinds.items()} for name, kinds in seconds.items()}
    scale = results[OWN].norm()
    return {
        "pixels": 8 * side,
        "seconds": seconds,
        "steps": steps,
        "edit": {
            name: sum(n * kinds[kind] for n, kind in zip(COUNTS, KINDS, strict=True)) for name, kinds in steps.items()
        },
        "tflop": operations(config, side),
        "evaluation": median(one),
        "gflop": flops.get_total_flops() / 1e9,
        "decoding": decoding(config, side, rounds, device, dtype),
        "peak_gb": peaks,
        "difference": {name: ((x - results[OWN]).norm() / scale).item() for name, x in results.items()},
        "changed": {
            name: ((results[with_it] - results[without]).norm() / scale).item() for name, without, with_it in SAVINGS
        },
    }


@torch.no_grad()
def decoding(config: UNetConfig, side: int, rounds: int, device, dtype) -> dict[str, float]:
    """Seconds of the VAE's decoder, its upsampling as it is written and folded: medians, after a run of each."""
    vae = VAE(VAEConfig() if config == UNetConfig() else replace(VAEConfig(), channels=(32, 64, 64, 64), groups=16))
    vae, x_0, taken = suit(vae.eval().to(device, dtype), device), torch.randn(1, 4, side, side).to(device), {}
    for done in range(rounds + 1):
        for way in ("as it is written", "folded"):
            for module in (module for module in vae.modules() if isinstance(module, Upsample)):
                module.quarters = None
                if way == "folded":
                    module.fold()
            _wait(device)
            began = time.perf_counter()
            vae.decode(x_0)
            _wait(device)
            if done:
                taken.setdefault(way, []).append(time.perf_counter() - began)
    return {way: median(times) for way, times in taken.items()}


@torch.no_grad()
def operations(config: UNetConfig, side: int) -> dict[str, float]:
    """TFLOP of an edit of 50 steps, by way: counted on tensors without numbers, so exact and the same everywhere.

    Products only, as FLOPs are counted: what a softmax costs is not in it.
    """
    with torch.device("meta"):
        unet = suit(UNet(config).eval(), torch.device("cpu"))
        x, text = torch.empty(1, 4, side, side), torch.empty(1, 77, config.context)
        latents = dict.fromkeys(timesteps(SHORT.steps), x)
        case = Case(unet, Guidance(latents, x, x, text), text, text)
        counted = {}
        for name, way in ways(case, Authors(like(unet)), None).items():
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


def work() -> dict[str, float]:
    """Evaluations U of the network for a first translation and for a second prompt, by the exact counts."""
    from minipnp.run import Settings

    theirs = AUTHORS_INVERSION + AUTHORS_RECONSTRUCTION + 3 * EDIT.steps
    at_latents = replace(Settings(), inversion=replace(Settings().inversion, at="current"))
    first, exact = (sum(s.evaluations(False, 1, False, False).values()) for s in (Settings(), at_latents))
    return {
        "authors, each prompt": theirs, "minipnp, first": first, "… with --inversion-at current": exact,
        "minipnp, second": 2 * EDIT.steps,
    }  # fmt: skip


def table(size: dict) -> str:
    edit, lines = size["edit"], []
    lines += [f"{size['pixels']} × {size['pixels']} pixels; one evaluation {size['evaluation']:.2f} s", ""]
    lines += ["| | f and A | f | none | edit of 50 steps | ratio | peak, GB | difference |", "|---|" + "---:|" * 7]
    for name in [name for name in edit if name not in OFF | LEFT_OUT]:
        steps = " | ".join(f"{size['steps'][name][kind]:.2f} s" for kind in KINDS)
        lines.append(
            f"| {name} | {steps} | {edit[name]:.0f} s | {edit[OWN] / edit[name]:.2f} | {size['peak_gb'][name]:.2f} "
            f"| {size['difference'][name]:.0e} |"
        )
    lines += [
        "",
        "| saving | edit without it | with it | saved | of the products | difference |",
        "|---|" + "---:|" * 5,
    ]
    for name, without, with_it in SAVINGS:
        time, products = (1 - measure[with_it] / measure[without] for measure in (edit, size["tflop"]))
        cells = f"{edit[without]:.0f} s | {edit[with_it]:.0f} s | {time:.1%} | {products:.1%}"
        lines.append(f"| {name} | {cells} | {size['changed'][name]:.0e} |")
    written, folded = (1000 * seconds for seconds in size["decoding"].values())
    lines += ["", f"The VAE's decoder: {written:,.0f} ms, with its upsampling folded {folded:,.0f} ms."]
    return "\n".join(lines)


def whole(size: dict, counts: dict[str, float]) -> str:
    """A translation from the picture to the latent, in seconds, from the measured parts and the exact counts."""
    u, edit = size["evaluation"], size["edit"]
    theirs = (AUTHORS_INVERSION + AUTHORS_RECONSTRUCTION) * u + edit[OWN]
    rows = [("the authors' way", theirs)]
    for name in ("minipnp, first", "… with --inversion-at current", "minipnp, second"):
        rows.append((f"{name} prompt" if name[0] == "m" else name, (counts[name] - 2 * EDIT.steps) * u + edit[KEPT]))
    lines = ["| whole translation | time | ratio |", "|---|---:|---:|"]
    return "\n".join(
        lines + [f"| {name} | {seconds / 60:.1f} min | {theirs / seconds:.1f} |" for name, seconds in rows]
    )


def plot(sizes: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(sizes), figsize=(5.6 * len(sizes), 3.4), squeeze=False)
    colours = ("#b5473c", "#8fa3b8", "#3a6ea5", "#1d3f66")
    for ax, size in zip(axes[0], sizes, strict=True):
        names = [OWN, WITHOUT, ALL, KEPT]
        seconds = [size["edit"][name] for name in names]
        bars = ax.barh(range(len(names)), seconds, color=colours)
        ax.set_yticks(range(len(names)), names if ax is axes[0][0] else [""] * len(names))
        ax.invert_yaxis()
        for bar, value in zip(bars, seconds, strict=True):
            ax.text(
                value, bar.get_y() + bar.get_height() / 2, f" {value:.0f} s · {seconds[0] / value:.2f}×", va="center"
            )
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
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    config, rounds = (SMALL, 1) if args.smoke else (UNetConfig(), args.rounds)
    sizes = args.sizes or ([64] if args.smoke else [256, 512])

    counts, measured = work(), []
    for pixels in sizes:
        print(f"{pixels} × {pixels}", file=sys.stderr, flush=True)
        measured.append(measure(config, pixels // 8, rounds, device, dtype, args.compile))
    rate = matrix_rate(device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result = {
        "device": name, "dtype": str(dtype).removeprefix("torch."), "torch": torch.__version__,
        "python": platform.python_version(), "rounds": rounds, "matrix_gflops": rate, "evaluations": counts,
        "sizes": measured,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(measured, args.out / "bench.png")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes to come
    with model_for(args.smoke, dtype) as model:
        result["start_up"] = start_up(args.smoke, model, device, dtype)
        result["whole_peak_gb"] = whole_peaks(model, device, dtype)
    (args.out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}, {result['dtype']}, torch {torch.__version__}, medians of {rounds} rounds\n")
    for size in measured:
        floor = size["gflop"] / rate
        print(table(size), whole(size, counts), sep="\n\n")
        print(f"\nOne evaluation is {size['gflop']:,.0f} GFLOP; at the {rate:,.0f} GFLOP/s of large matrix products")
        print(f"that is {floor:.2f} s, {floor / size['evaluation']:.0%} of what it takes.\n")
    print("| a fresh process, from its start | seconds |\n|---|---:|")
    print(*(f"| {what} | {seconds:.2f} |" for what, seconds in result["start_up"].items()), sep="\n")
    steps = whole_steps(device)
    print(f"\n| a whole translation in {steps} steps at the model's size, weights included | peak, GB |\n|---|---:|")
    print(*(f"| {what} | {gb:.2f} |" for what, gb in result["whole_peak_gb"].items()), sep="\n")
    print("\nEvaluations: " + ", ".join(f"{what} {n:,}" for what, n in counts.items()))
    print(f"{args.out / 'bench.json'}\n{args.out / 'bench.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
