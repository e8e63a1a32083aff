"""ε_θ: the UNet of Stable Diffusion 1.x, built from a table of its 12 encoder rows, 1 middle row and 12 decoder rows.

    encoder  cells  channels                      decoder  cells  channels      Plug-and-Play
       0     64²      4→ 320  conv                   11    64²   640→ 320  R T   A
       1     64²    320→ 320  R T                    10    64²   640→ 320  R T   A
       2     64²    320→ 320  R T                     9    64²   960→ 320  R T   A
       3     32²    320→ 320  down                    8    32²   960→ 640  R T ↑ A
       4     32²    320→ 640  R T                     7    32²  1280→ 640  R T   A
       5     32²    640→ 640  R T                     6    32²  1920→ 640  R T   A
       6     16²    640→ 640  down                    5    16²  1920→1280  R T ↑ A
       7     16²    640→1280  R T                     4    16²  2560→1280  R T   A, f
       8     16²   1280→1280  R T                     3    16²  2560→1280  R T
       9      8²   1280→1280  down                    2     8²  2560→1280  R ↑
      10      8²   1280→1280  R                       1     8²  2560→1280  R
      11      8²   1280→1280  R                       0     8²  2560→1280  R
                              middle  8²  1280→1280  R T R

R: ResBlock, T: transformer (self-attention, cross-attention), ↑: upsampling by 2. Cells (after down, before ↑) and
channels: SD-1.5's at 512². Encoder row i stands beside decoder row 11 − i, which takes its output in: hence its width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.config import UNetConfig
from minipnp.ddim import ALPHA_BAR
from minipnp.layers import ResBlock, TimeEmbedding, Transformer, Upsample, repeated
from minipnp.slots import Attn, Features, Layer, Part, Tap


class Has(NamedTuple):
    """One row of the table: the level of resolution of its input (0 is the latent's own), and what it holds."""

    level: int
    what: str


ENCODER = (
    Has(0, "conv"), Has(0, "R T"), Has(0, "R T"), Has(0, "down"), Has(1, "R T"), Has(1, "R T"),
    Has(1, "down"), Has(2, "R T"), Has(2, "R T"), Has(2, "down"), Has(3, "R"), Has(3, "R"),
)  # fmt: skip
MIDDLE = (Has(3, "R T R"),)
DECODER = (
    Has(3, "R"), Has(3, "R"), Has(3, "R up"), Has(2, "R T"), Has(2, "R T"), Has(2, "R T up"),
    Has(1, "R T"), Has(1, "R T"), Has(1, "R T up"), Has(0, "R T"), Has(0, "R T"), Has(0, "R T"),
)  # fmt: skip
_PARTS = (ENCODER, MIDDLE, DECODER)
TABLE = {Layer(part, i): row for part, table in zip(Part, _PARTS, strict=True) for i, row in enumerate(table)}

ATTENTIONS = tuple(layer for layer, row in TABLE.items() if "T" in row.what)  # 16, in the order of execution


@dataclass(frozen=True)
class Pass:
    """What one evaluation of the network carries from row to row.

    time: the embedded timestep [1 or B, width]. context: the text [B, 77, width]. inject: what is put into the slots.
    tap: what is taken out; taken: of that, what the rows so far have given.
    """

    time: Tensor
    context: Tensor
    inject: Features
    tap: Tap
    taken: Features

    def slot(self, a: Attn | Callable[[Features], Attn] | None) -> Attn | None:
        """What an attention is given. A function is asked now, as it may depend on what was taken so far."""
        return a(self.taken) if callable(a) else a


class Row(nn.Module):
    """A row of the table. A stage that the row does not have is None."""

    def __init__(self, layer: Layer, c_in: int, c_out: int, config: UNetConfig):
        super().__init__()
        self.layer = layer
        what = TABLE[layer].what
        time = 4 * config.channels[0]
        self.conv = nn.Conv2d(c_in, c_out, kernel_size=3, padding=1) if what == "conv" else None
        self.down = nn.Conv2d(c_in, c_out, kernel_size=3, stride=2, padding=1) if what == "down" else None
        self.res = ResBlock(c_in, c_out, config.groups, 1e-5, time) if "R" in what else None
        self.transformer = Transformer(c_out, config.context, config.heads, config.groups) if "T" in what else None
        self.res2 = ResBlock(c_out, c_out, config.groups, 1e-5, time) if what == "R T R" else None
        self.up = Upsample(c_out) if "up" in what else None

    def forward(self, x: Tensor, p: Pass) -> Tensor:
        """x: [B, C_in, H, W] → [B, C_out, H', W']; what the pass asks of this row is put into `p.taken`."""
        layer = self.layer
        if self.conv is not None:
            x = self.conv(x)
        if self.down is not None:
            x = self.down(x)
        if self.res is not None:
            x, f = self.res(x, p.time, p.inject.f.get(layer))
            if layer in p.tap.f:
                p.taken.f[layer] = f
        if self.transformer is not None:
            slot_A = p.slot(p.inject.A.get(layer))
            slot_M = p.slot(p.inject.M.get(layer))
            x, A, M = self.transformer(x, p.context, slot_A, slot_M, layer in p.tap.A, layer in p.tap.M)
            if layer in {*p.tap.q, *p.tap.k, *p.tap.v, *p.tap.A}:
                p.taken.A[layer] = p.tap.keep(layer, A)
            if layer in p.tap.M:
                p.taken.M[layer] = M
        if self.res2 is not None:
            x, _ = self.res2(x, p.time)
        if self.up is not None:
            x = self.up(x)
        return x


class UNet(nn.Module):
    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = config
        c = config.channels
        self.time = TimeEmbedding(c[0])
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        width = config.in_channels
        skips = []
        for i, row in enumerate(ENCODER):
            self.encoder.append(Row(Layer(Part.ENCODER, i), width, c[row.level], config))
            width = c[row.level]
            skips.append(width)
        self.middle = Row(Layer(Part.MIDDLE, 0), width, width, config)
        for i, row in enumerate(DECODER):
            self.decoder.append(Row(Layer(Part.DECODER, i), width + skips.pop(), c[row.level], config))
            width = c[row.level]
        self.norm_out = nn.GroupNorm(config.groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, 4, kernel_size=3, padding=1)

    @property
    def rows(self) -> Iterator[Row]:
        """All 25, in the order of execution."""
        yield from self.encoder
        yield self.middle
        yield from self.decoder

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor, inject: Features | None = None) -> Tensor:
        """ε_θ(x_t, P, t), or ε̂ where something is injected.

        x: latent [B, 4, H, W], H and W multiples of 8. t: timestep in 0 … 999, one for all or [B].
        context: text embeddings [B, 77, width]; an x of one row serves any number of them. → ε [B, 4, H, W], x's dtype.
        """
        return self.tap(x, t, context, Tap(), inject)[0]

    def tap(
        self, x: Tensor, t: Tensor | float, context: Tensor, tap: Tap, inject: Features | None = None, stop=False
    ) -> tuple[Tensor | None, Features]:
        """Evaluate ε_θ and also return the requested features.

        stop: end after the row that gives the last of them; then there is no ε (None).
        """
        dtype = self.conv_out.weight.dtype
        # `full` writes the number on the device; a tensor made here would make the GPU wait for its copy.
        times = t.reshape(-1) if isinstance(t, Tensor) else torch.full((1,), t, device=x.device)
        p = Pass(self.time(times), context.to(dtype), inject or Features(), tap, Features({}, {}, {}, {}))
        h = x.to(dtype)
        skips = []
        for row in self.rows:
            if row.layer.part is Part.DECODER:
                own = skips.pop()
                s = p.inject.s.get(row.layer, own)
                if row.layer in tap.s:
                    p.taken.s[row.layer] = s
                n = max(len(h), len(s))
                h = torch.cat([repeated(h, n), repeated(s, n)], dim=1)
            h = row(h, p)
            if stop and row.layer == tap.last:
                return None, p.taken
            if row.layer.part is Part.ENCODER:
                skips.append(h)
        out = self.conv_out(F.silu(self.norm_out(h))).to(x.dtype)
        if self.config.prediction == "v":  # v = √ᾱ·ε − √(1−ᾱ)·x_0, hence ε = √ᾱ·v + √(1−ᾱ)·x_t
            if isinstance(t, Tensor):
                a = torch.tensor(ALPHA_BAR, dtype=torch.float32, device=x.device)[times.long()].reshape(-1, 1, 1, 1)
            else:
                a = torch.full((1, 1, 1, 1), ALPHA_BAR[int(t)], dtype=torch.float32, device=x.device)
            out = a.sqrt() * out + (1 - a).sqrt() * x
        return out, p.taken
