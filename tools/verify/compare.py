"""Two implementations of one network, layer by layer: which layer is the first that differs, and by how much?

The reference runs first, and the output of each of its layers is kept. Then ours runs; after each layer its output is
compared with the kept one and *replaced* by it. So every layer works on the reference's own numbers, its error is its
own, and a mistake shows where it is made and nowhere after it. One more run, left alone, gives the whole network's
error.

Which layer of theirs belongs to a layer of ours is said by the tables of names that weights are loaded with. (The hooks
below only test networks from outside; minipnp itself has none.)
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minipnp.weights import Rules, published_name

# Allowed, in float32 (one part in 1.7e7). Layers are given equal inputs: they differ by the order in which up to some
# 10⁴ products are summed, 1e-7 to 1e-6. A network of hundreds of layers adds that up and passes it through softmaxes.
# The smallest mistake that is known to happen, 1e-5 for 1e-6 in a norm, is 1e-1 on inputs as faint as the tests' are.
PER_LAYER = 1e-5
WHOLE = 1e-4


class Difference(NamedTuple):
    """Of our output a from the reference's b. Not comparable (another shape) is infinite."""

    layer: str
    reference: str  # the layer's name there
    relative: float  # ‖a − b‖ / ‖b‖
    largest: float  # max |a − b| / max |b|

    def within(self, tolerance: float) -> bool:
        return self.relative <= tolerance and self.largest <= tolerance  # a NaN is within nothing

    def __str__(self) -> str:
        reference = f" ({self.reference})" if self.reference else ""
        return f"{self.layer}{reference}: ‖a−b‖/‖b‖ = {self.relative:.1e}, max|a−b|/max|b| = {self.largest:.1e}"


@dataclass(frozen=True)
class Comparison:
    layers: list[Difference]  # in the order in which our layers ended
    output: Difference  # of the whole network
    idle: list[str]  # layers that ran in the reference only

    def fault(self) -> str | None:
        """None if all is equal, else one line that names the first layer that differs."""
        wrong = [d for d in self.layers if not d.within(PER_LAYER)]
        if wrong:
            before = self.layers[: self.layers.index(wrong[0])]
            after = f"; it follows {before[-1].layer}, which agrees" if before else ""
            more = f"; {len(wrong)} of {len(self.layers)} layers differ" if len(wrong) > 1 else ""
            return f"the first layer that differs is {wrong[0]}{after}{more}"
        if not self.output.within(WHOLE):
            idle = f"; the reference also ran {', '.join(self.idle)}" if self.idle else ""
            return f"each layer that ran agrees, given the reference's input, and yet {self.output}{idle}"
        return None


def difference(layer: str, reference: str, a: Tensor, b: Tensor) -> Difference:
    if a.shape != b.shape:
        return Difference(f"{layer} {list(a.shape)}", f"{reference} {list(b.shape)}", float("inf"), float("inf"))
    d = (a - b).float()
    return Difference(layer, reference, (d.norm() / b.norm()).item(), (d.abs().max() / b.abs().max()).item())


def counterparts(ours: nn.Module, theirs: nn.Module, rules: Rules) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """(name, module) of each layer of ours that the reference has too, and (name, module) there."""
    there = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        reference = published_name(f"{name}.weight", rules).removesuffix(".weight")
        if name and reference in there:
            yield name, module, reference, there[reference]


@torch.no_grad()
def compare(
    ours: nn.Module, theirs: nn.Module, rules: Rules,
    run_ours: Callable[[nn.Module], Tensor], run_theirs: Callable[[nn.Module], Tensor],
) -> Comparison:  # fmt: skip
    """Run both on the same input, as `run_…(network)` say: each from the same input to the same output.

    Raises LookupError if one of our layers with weights has no counterpart: it would go untested.
    """
    pairs = list(counterparts(ours, theirs, rules))
    names = {name: reference for name, _, reference, _ in pairs}
    kept: dict[str, Tensor] = {}
    layers: list[Difference] = []

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            kept[name] = _tensor(output)

        return hook

    def judge(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            if name not in kept:
                if module._parameters:
                    raise LookupError(f"{name} has weights, and nothing in the reference to be compared with")
                return None
            a, b = _tensor(output), kept.pop(name)
            # Heads, or height and width, may stand as dimensions of their own on one side.
            b = b.reshape(a.shape) if len(a) == len(b) and a.numel() == b.numel() else b
            layers.append(difference(name, names[name], a, b))
            if a.shape != b.shape:
                return None
            return b if torch.is_tensor(output) else (b, *output[1:])

        return hook

    with ExitStack() as hooks:
        for name, _, _, module in pairs:
            hooks.callback(module.register_forward_hook(keep(name)).remove)
        expected = run_theirs(theirs)
    with ExitStack() as hooks:
        for name, module in ours.named_modules():
            hooks.callback(module.register_forward_hook(judge(name)).remove)
        run_ours(ours)
    return Comparison(layers, difference("the whole network", "", run_ours(ours), expected), idle=list(kept))


def _tensor(output: Any) -> Tensor:
    """The stream, which comes first where a layer returns more."""
    return output if torch.is_tensor(output) else output[0]
