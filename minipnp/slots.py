"""What may be put into a pass of the UNet, and what may be taken out of it.

All editing methods are differences in this one object. A slot is an argument of a layer's `forward`, `None` by default:

* *override*: a tensor takes the place of the layer's own, which is then not computed: `f` of a ResBlock; `q`, `k`, `v`
  of an attention, or its whole `map`; `s`, the skip connection into a decoder layer;
* *edit*: a pure function of the layer's own attention map;
* *mask*: which keys a query may attend to;
* *tap*: the values that come back to the caller, and that later slots of the same pass can read.

What one pass gives has the type of what another takes, so Plug-and-Play is two lines:

    z_G, taken = unet.tap(x_G, t, null, Tap(f=decoder(4), q=decoder(*range(4, 12)), k=decoder(*range(4, 12))))
    z = unet(x, t, text, inject=taken)

Tensors in slots have the batch size of the pass, or 1 and then serve all its rows.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Part(IntEnum):
    """The three parts of the UNet, in the order of execution."""

    ENCODER = 0
    MIDDLE = 1
    DECODER = 2


class Layer(NamedTuple):
    """A row of the UNet's table (unet.py); layers compare in the order of execution."""

    part: Part
    row: int

    def __str__(self) -> str:
        return f"{self.part.name.lower()} {self.row}"


def decoder(*rows: int) -> tuple[Layer, ...]:
    """The paper's layers: rows 0 to 11 of the decoder. Row i is `up_blocks[i // 3]`, its number i % 3, in diffusers."""
    if bad := [row for row in rows if not 0 <= row < 12]:
        raise ValueError(f"the decoder has layers 0 to 11, not {bad}")
    return tuple(Layer(Part.DECODER, row) for row in rows)


@dataclass(frozen=True)
class Attn:
    """The quantities of one attention; `None` stands for the layer's own.

    q, k, v: [B or 1, heads, tokens, head size]. map: softmax(q·kᵀ/√d), [B or 1, heads, queries, keys].
    edit: map → map, of the same shape. mask: bool, True where a query may attend to a key; broadcast to the map that is
    computed here, without effect on a given one.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    map: Tensor | None = None
    edit: Callable[[Tensor], Tensor] | None = None
    mask: Tensor | None = None


class Features(NamedTuple):
    """Slots by layer: f of the ResBlocks, A of the self-attentions, M of the cross-attentions, s of the decoder's rows.

    f: [B or 1, channels, height, width], a ResBlock's output before its skip connection is added. s: [B or 1, channels,
    height, width], what a decoder row is given of the encoder row beside it.
    To inject, a value of A or M may also be a function of the `Features` tapped so far in the same pass.
    """

    f: Mapping[Layer, Tensor] = {}
    A: Mapping[Layer, "Attn | Callable[[Features], Attn]"] = {}
    M: Mapping[Layer, "Attn | Callable[[Features], Attn]"] = {}
    s: Mapping[Layer, Tensor] = {}

    def rows(self, index: list[int]) -> "Features":
        """The same features with their batch rows taken in this order, one for each row of the pass to come."""

        def pick(x: Tensor | None) -> Tensor | None:
            if x is None or x.dim() < 4 or len(x) == 1:  # a mask may have no rows
                return x
            return torch.stack([x[i] for i in index])  # x[index] would make the GPU wait for the index

        def slot(a: "Attn | Callable") -> "Attn | Callable":  # what a function returns is for the rows of its pass
            return a if callable(a) else Attn(pick(a.q), pick(a.k), pick(a.v), pick(a.map), a.edit, pick(a.mask))

        parts = zip((pick, slot, slot, pick), self, strict=True)
        return Features(*({layer: take(x) for layer, x in part.items()} for take, part in parts))

    def only(self, tap: "Tap") -> "Features | None":
        """Of f, q, k and s, what this tap asks for; None where not all of it is here."""
        if not (self.f.keys() >= {*tap.f} and self.A.keys() >= {*tap.q, *tap.k} and self.s.keys() >= {*tap.s}):
            return None
        return Features(
            f={layer: self.f[layer] for layer in tap.f},
            A={layer: tap.keep(layer, self.A[layer]) for layer in {*tap.q, *tap.k}},
            s={layer: self.s[layer] for layer in tap.s},
        )


@dataclass(frozen=True)
class Tap:
    """Which values of a pass come back: f; q, k, v and map A of self-attentions; map M of cross-attentions; s."""

    f: Collection[Layer] = ()
    q: Collection[Layer] = ()
    k: Collection[Layer] = ()
    v: Collection[Layer] = ()
    A: Collection[Layer] = ()
    M: Collection[Layer] = ()
    s: Collection[Layer] = ()

    @property
    def last(self) -> Layer | None:
        """The last layer of which anything is read; `None` if nothing is."""
        return max({*self.f, *self.q, *self.k, *self.v, *self.A, *self.M, *self.s}, default=None)

    def keep(self, layer: Layer, a: Attn) -> Attn:
        """Of a self-attention's quantities, those that are asked for: the rest need not be held in memory."""
        return Attn(
            q=a.q if layer in self.q else None,
            k=a.k if layer in self.k else None,
            v=a.v if layer in self.v else None,
            map=a.map if layer in self.A else None,
        )
