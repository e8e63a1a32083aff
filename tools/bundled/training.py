"""The loop that trains a network: AdamW, warm-up and decay, a running average of the weights, checkpoints.

Under torchrun each process has its part of every batch, and their weights are averaged now and then: meant for a CPU,
where networks as small as these leave a second thread idle.

A batch follows from (seed, step), so a checkpoint of weights, optimiser and step is all that a run is: broken off and
taken up again, it goes on with the same numbers (on one machine; CUDA adds in no fixed order, so there nearly).
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from minipnp.errors import InputError
from minipnp.files.atomic import atomic
from minipnp.files.loading import find_model, pick_device
from tools.bundled.fetch import DATA

WORK = Path("out/bundled")  # checkpoints, and the evaluation's records
SPEED = (30, 60)  # the steps between which it is measured
FIRST, FINISHED = 64, 128  # sides of the pictures, in pixels: of the first phase, and of the second


@dataclass(frozen=True)
class Plan:
    """samples: how many pictures to learn from; or fit: as many as so many minutes take, at the speed of the start.

    lr: AdamW's at its highest, after `warmup` steps. From there it falls to 0 on a cosine; or, with `cooldown`, it
    stays until this share of the steps is left, and falls to 0 on a line. ema: decay of the average.
    """

    batch: int
    lr: float
    samples: int | None = None
    fit: float | None = None
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    cooldown: float | None = None

    def steps(self, rate: float = 0.0) -> int | None:
        """rate: pictures per second, once it is known; None before that, where the plan depends on it."""
        samples = self.samples or rate * 60 * (self.fit or 0)
        return max(1, round(samples / self.batch)) if samples else None

    def lr_at(self, step: int, steps: int | None) -> float:
        rise = min(1.0, (step + 1) / self.warmup)
        if not steps:
            return self.lr * rise
        if self.cooldown is None:
            return self.lr * rise * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        return self.lr * rise * min(1.0, (1 - step / steps) / self.cooldown)

    def ema_at(self, step: int) -> float:
        return min(self.ema, (1 + step) / (10 + step))


class Clock:
    """The time that this process may take, in minutes; None: as long as it needs."""

    def __init__(self, minutes: float | None = None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def over(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end


class Team:
    """The processes that train together: this one is `part` of `parts`; one alone where torchrun did not start it.

    Each takes steps of its own, with its part of each batch. After every few, all go on from the mean of their weights:
    to share every step's gradients instead costs a third of the speed.
    """

    def __init__(self, together: int = 8):
        self.part, self.parts = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.together = together if self.parts > 1 else 1  # steps between two means
        if self.parts > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    def share(self, networks: nn.Module) -> None:
        if self.parts == 1:
            return
        weights = [p.data for p in networks.parameters()]
        flat = torch.cat([w.flatten() for w in weights])
        dist.all_reduce(flat)
        flat /= self.parts
        means = flat.split([w.numel() for w in weights])
        torch._foreach_copy_(weights, [m.view_as(w) for w, m in zip(weights, means, strict=True)])

    def any(self, over: bool) -> bool:
        """Whether any process's time is over: all must stop at the same step."""
        told = torch.tensor(int(over))
        if self.parts > 1:
            dist.all_reduce(told)
        return bool(told)

    def agreed(self, steps: int) -> int:
        """The first process's."""
        told = torch.tensor(steps)
        if self.parts > 1:
            dist.broadcast(told, 0)
        return int(told)


@dataclass
class State:
    """What a checkpoint holds. about: what the networks are. average: the running average of their weights.

    steps: of the whole plan, None where that is not known yet. losses: of every step. scale: of the VAE's latents.
    """

    about: dict
    plan: dict
    step: int
    steps: int | None
    average: dict[str, Tensor]
    networks: dict[str, Tensor]
    optimizer: dict
    losses: list[float]
    scale: float | None = None

    @property
    def finished(self) -> bool:
        return self.step == self.steps


def read(work: Path, name: str, device: torch.device | str = "cpu") -> State | None:
    place = work / f"{name}.pt"
    return State(**torch.load(place, map_location=device, weights_only=True)) if place.exists() else None


def need(work: Path, name: str, device: torch.device | str = "cpu") -> State:
    if (state := read(work, name, device)) is None:
        raise InputError(f"{work / name}.pt: not there; `python -m tools.bundled.train` runs all steps in order")
    return state


def write(work: Path, name: str, state: State) -> None:
    work.mkdir(parents=True, exist_ok=True)
    with atomic(work / f"{name}.pt") as temporary:
        torch.save(vars(state), temporary)


def before(origin: Path, name: str) -> dict:
    """How the exported model that this training begins with was trained, for `about`."""
    place = origin / "training.json"
    return {"before": json.loads(place.read_text(encoding="utf-8"))[name]} if place.exists() else {}


def there(work: Path, name: str) -> State | None:
    """The finished state, where an exported model is gone on with. InputError: one that is not finished is there."""
    state = read(work, name)
    if state is not None and not state.finished:
        raise InputError(f"{work / name}.pt is not finished: leave out --from to go on with it, or give another --work")
    return state


def adopt(work: Path, name: str, network: nn.Module, about: dict, scale: float | None = None) -> State:
    """A finished state of a network that is not trained here."""
    weights = network.state_dict()
    state = State(about, {}, 0, 0, weights, weights, {}, [], scale)
    write(work, name, state)
    return state


def train(
    name: str, networks: nn.Module, about: dict, loss: Callable[[int], Tensor], plan: Plan, work: Path, clock: Clock,
    save_every: float = 5.0, team: Team | None = None,
) -> State:  # fmt: skip
    """Until the plan is done or the clock is over, from the checkpoint where there is one. loss: of a step's batch.

    save_every: minutes. Raises InputError for a checkpoint of another plan or of other networks.
    """
    device, team = next(networks.parameters()).device, team or Team()
    networks.train().requires_grad_(True)
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(_groups(networks), lr=plan.lr, betas=(0.9, 0.99), fused=fused)
    average = AveragedModel(
        networks, multi_avg_fn=lambda ours, theirs, _: torch._foreach_lerp_(ours, theirs, 1 - plan.ema_at(step))
    )
    step, steps, losses, pending = 0, plan.steps(), [], []
    if (state := read(work, name, device)) is not None:
        if (state.about, state.plan) != (about, asdict(plan)):
            raise InputError(f"{work / name}.pt is of another training: {_differences(state, about, plan)}; "
                             "give the same options, another --work, or remove it")  # fmt: skip
        step, steps, losses = state.step, state.steps, state.losses
        networks.load_state_dict(state.networks)
        average.module.load_state_dict(state.average)
        average.n_averaged.fill_(step)
        optimizer.load_state_dict(state.optimizer)

    def current() -> State:
        losses.extend(torch.stack(pending).tolist() if pending else [])
        pending.clear()
        return State(about, asdict(plan), step, steps, average.module.state_dict(), networks.state_dict(),
                     optimizer.state_dict(), losses)  # fmt: skip

    first, times, saved = step, {}, time.monotonic()
    bar = tqdm(desc=name, total=steps and steps * plan.batch, initial=step * plan.batch, unit=" pictures",
               unit_scale=True, mininterval=2, file=sys.stderr)  # fmt: skip
    with bar:
        while step != steps and not (step % team.together == 0 and team.any(clock.over())):
            for group in optimizer.param_groups:
                group["lr"] = plan.lr_at(step, steps)
            value = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(networks.parameters(), plan.clip)
            optimizer.step()
            step += 1
            if step % team.together == 0 or step == steps:
                team.share(networks)
            average.update_parameters(networks)
            pending.append(value.detach())
            bar.update(plan.batch)
            if steps is None and step - first in SPEED:
                times[step - first] = _now(device)
                if len(times) == 2:
                    seconds = times[SPEED[1]] - times[SPEED[0]]
                    steps = team.agreed(max(step, plan.steps(plan.batch * (SPEED[1] - SPEED[0]) / seconds)))
                    bar.total = steps * plan.batch
            if len(pending) == 50:
                bar.set_postfix(loss=f"{torch.stack(pending).mean().item():.4f}", refresh=False)
                current()
            if team.part == 0 and time.monotonic() - saved > 60 * save_every:
                write(work, name, current())
                saved = time.monotonic()
    networks.eval().requires_grad_(False)
    if state is None or step > first:
        state = current()
        if team.part == 0:
            write(work, name, state)
    return state


def _groups(networks: nn.Module) -> list[dict]:
    """Weight decay for matrices and kernels only; an embedding that no caption names would fade under it."""
    embeddings = {id(m.weight) for m in networks.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in networks.parameters() if p.ndim > 1 and id(p) not in embeddings]
    others = [p for p in networks.parameters() if p.ndim <= 1 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]


def _differences(state: State, about: dict, plan: Plan) -> str:
    old, new = {**state.about, **state.plan}, {**about, **asdict(plan)}
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
    return time.monotonic()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the matrix units have it; float32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


# ---------------------------------------------------------------------------------------------------------------------
# What the steps' command lines share.


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, default=DATA, help="what was fetched and rendered (default: %(default)s)")
    add("--work", type=Path, default=WORK, help="checkpoints (default: %(default)s)")
    add("--device", help="cpu, cuda or mps (default: the fastest there is)")
    add(
        "--size",
        type=int,
        choices=(FIRST, FINISHED),
        help=f"pixels (default: those of --from, else {FIRST})",
    )
    add("--minutes", type=float, help="stop after so many, with a checkpoint (default: at the end)")
    add("--samples", type=int, help="pictures to learn from")
    add("--fit", type=float, help="or as many as so many minutes take, by the speed of the first steps")
    add("--batch", type=int)
    add("--lr", type=float, help="highest learning rate")
    add("--seed", type=int, default=0)
    add(
        "--from",
        type=Path,
        dest="origin",
        metavar="FOLDER",
        help="take the VAE and the classifier from this exported model, and go on with its UNet, where --work has none",
    )
    return parser


def size_for(given: int | None, origin: Path | None = None) -> int:
    """Of the pictures, in pixels. InputError: the model to go on with is for larger ones."""
    if origin is None:
        return given or FIRST
    configs = find_model(origin).configs
    trained = configs["unet"].size * configs["vae"].factor
    if given is not None and given < trained:
        raise InputError(f"--size {given}: the model in {origin} is for {trained} pixels; leave out --size")
    return given or trained


def settle(args: argparse.Namespace, plans: dict[str, Plan]) -> tuple[torch.device, Plan]:
    """Device and plan: what was given, else what the device is good for."""
    device = pick_device(args.device)
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    kind = "cpu" if device.type == "cpu" else "gpu"
    given = {name: value for name in ("batch", "lr") if (value := getattr(args, name)) is not None}
    if args.samples or args.fit:
        given |= {"samples": None if args.fit else args.samples, "fit": args.fit}
    return device, replace(plans[kind], seed=args.seed, **given)
