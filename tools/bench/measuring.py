"""What is measured of the ways at one size: the seconds of their steps, memory, differences, counted operations."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minipnp.config import UNetConfig, VAEConfig
from minipnp.ddim import noise, timesteps
from minipnp.guidance import Guidance
from minipnp.machine.speed import suit
from minipnp.machine.upsampling import fold, unfold
from minipnp.unet import UNet
from minipnp.vae import VAE
from tools.bench.authors import Authors
from tools.bench.case import COUNTS, KINDS, SHORT, Case, random_unet
from tools.bench.load import memory
from tools.bench.ways import (
    ALL,
    KEPT,
    KEPT_COMPILED,
    OWN,
    OWN_COMPILED,
    SAVINGS,
    TEXT_ONCE,
    compiled_copy,
    size_of_kept,
    ways,
)
from tools.verify.reference import like


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
        networks |= {"minipnp, compiled": compiled_copy(unet, backend), "diffusers, compiled": like(unet).to(device)}
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
            unfold(vae)
            if way == "folded":
                fold(vae)
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
