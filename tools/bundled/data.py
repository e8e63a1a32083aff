"""Icons to batches of pictures and captions, on the fly. Every batch follows from (seed, step)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.errors import InputError
from tools.bundled.captions import caption
from tools.bundled.concepts import (
    COLOURS,
    CONCEPTS,
    FINISHED_CONCEPTS,
    FINISHED_STYLES,
    HELD_OUT_CONCEPTS,
    HELD_OUT_STYLE,
    STYLES,
)
from tools.bundled.render import file_name

STYLE_WORDS, CONCEPT_WORDS, COLOUR_WORDS = list(STYLES.values()), [c.words for c in CONCEPTS], list(COLOURS)
SIDE = (0.7, 0.95)  # of the picture's side that an icon takes, where it is drawn at random
FILLS = 0.85  # of the picture's side, where nothing is drawn at random: room for the background around every icon


@dataclass(frozen=True)
class Icons:
    """rgba: uint8 [n, 4, side, side], straight alpha. style, concept: [n], into STYLE_WORDS and CONCEPT_WORDS."""

    rgba: Tensor
    style: Tensor
    concept: Tensor

    @classmethod
    def read(cls, data: Path, side: int) -> "Icons":
        place = data / file_name(side)
        if not place.exists():
            raise InputError(f"{place}: not there; run `python -m tools.bundled.render` first")
        with np.load(place) as icons:
            rgba = torch.from_numpy(icons["rgba"]).permute(0, 3, 1, 2).contiguous()
            said = {"style": (icons["style"], STYLE_WORDS), "concept": (icons["concept"], CONCEPT_WORDS)}
            try:
                indices = {name: torch.tensor([known.index(w) for w in words]) for name, (words, known) in said.items()}
            except ValueError as error:
                raise InputError(f"{place}: {error}; remove it and run `python -m tools.bundled.render`") from None
            return cls(rgba, **indices)

    def __len__(self) -> int:
        return len(self.rgba)

    def __getitem__(self, index: Tensor) -> "Icons":
        return Icons(self.rgba[index], self.style[index], self.concept[index])

    def to(self, device: torch.device) -> "Icons":
        """The pixels there; what is counted and drawn stays on the CPU."""
        return replace(self, rgba=self.rgba.to(device))

    def of(self, style: str, concept: str) -> int | None:
        wanted = (self.style == STYLE_WORDS.index(style)) & (self.concept == CONCEPT_WORDS.index(concept))
        return int(wanted.nonzero()[0]) if wanted.any() else None

    def trained(self) -> "Icons":
        """Those that networks may learn from."""
        return self[self.known_styles() & self.known_concepts()]

    def finished(self) -> "Icons":
        """Those that the second phase of the UNet's training goes on with."""
        return self[self.finished_styles() & self.finished_concepts()]

    def held_out(self) -> "Icons":
        return self[~(self.known_styles() & self.known_concepts())]

    def finished_styles(self) -> Tensor:
        return torch.isin(self.style, torch.tensor([STYLE_WORDS.index(words) for words in FINISHED_STYLES]))

    def finished_concepts(self) -> Tensor:
        return torch.isin(self.concept, torch.tensor([CONCEPT_WORDS.index(words) for words in FINISHED_CONCEPTS]))

    def known_styles(self) -> Tensor:
        return self.style != STYLE_WORDS.index(HELD_OUT_STYLE)

    def known_concepts(self) -> Tensor:
        return ~torch.isin(self.concept, torch.tensor([CONCEPT_WORDS.index(words) for words in HELD_OUT_CONCEPTS]))


class Placed(NamedTuple):
    """How n icons become pictures: each a row."""

    icon: Tensor  # [n] index
    flip: Tensor  # [n] bool
    scale: Tensor  # [n] side of the icon as a share of the picture's
    shift: Tensor  # [n, 2] of its centre, in half sides of the picture
    colour: Tensor  # [n] into COLOUR_WORDS
    background: Tensor  # [n, 3] in [−1, 1]


def generator(seed: int, step: int) -> torch.Generator:
    """What is drawn for a step's pictures and captions; on the CPU, so that they are the same everywhere."""
    return torch.Generator().manual_seed(seed * 2**32 + step)


def noise_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """What is drawn beside that, and too much to be sent to the device."""
    return torch.Generator(device).manual_seed(seed * 2**32 + 2**31 + step)


def plain(icon: list[int], colour: list[str]) -> Placed:
    """Nothing at random: in the middle, on the colour itself."""
    n, index = len(icon), torch.tensor([COLOUR_WORDS.index(words) for words in colour])
    still, centred = torch.zeros(n, dtype=torch.bool), torch.zeros(n, 2)
    return Placed(torch.tensor(icon), still, torch.full((n,), FILLS), centred, index, _rgb()[index])


def placed(icons: Icons, n: int, g: torch.Generator, mirrored: float = 0.5, side: tuple[float, float] = SIDE) -> Placed:
    """Augmentation: this share mirrored, between such shares of the picture's side, anywhere inside, on any colour,
    varied a little.
    """
    scale = side[0] + (side[1] - side[0]) * torch.rand(n, generator=g)
    colour = torch.randint(len(COLOURS), (n,), generator=g)
    lighter, tint = torch.rand(n, 1, generator=g) - 0.5, torch.rand(n, 3, generator=g) - 0.5
    return Placed(
        icon=torch.randint(len(icons), (n,), generator=g),
        flip=torch.rand(n, generator=g) < mirrored,
        scale=scale,
        shift=(2 * torch.rand(n, 2, generator=g) - 1) * (0.98 - scale)[:, None],
        colour=colour,
        background=(_rgb()[colour] + 0.14 * lighter + 0.07 * tint).clamp(-1, 1),
    )


def _rgb() -> Tensor:
    return torch.tensor(list(COLOURS.values())) / 127.5 - 1


def draw(icons: Icons, p: Placed) -> tuple[Tensor, Tensor]:
    """→ pictures [n, 3, side, side] in [−1, 1], and the icons' coverage [n, 1, side, side] in 0 … 1."""
    device = icons.rgba.device
    rgba = icons.rgba[p.icon.to(device)].float() / 255
    rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)  # colours weigh by coverage when they are mixed
    where = torch.zeros(len(rgba), 2, 3)  # from a place in the picture to one in the icon
    where[:, 0, 0] = torch.where(p.flip, -1.0, 1.0) / p.scale
    where[:, 1, 1] = 1 / p.scale
    where[:, :, 2] = -where[:, :, :2].diagonal(dim1=1, dim2=2) * p.shift
    grid = F.affine_grid(where.to(device), list(rgba.shape), align_corners=False)
    rgba = F.grid_sample(rgba, grid, align_corners=False)
    colour, alpha = rgba[:, :3], rgba[:, 3:]
    background = (p.background.to(device)[:, :, None, None] + 1) / 2
    return 2 * (colour + (1 - alpha) * background) - 1, alpha


def described(icons: Icons, p: Placed, g: torch.Generator, empty: float = 0.1) -> list[str]:
    """A caption for each: mostly all of it, sometimes less; `empty` of them nothing, for classifier-free guidance."""
    drawn = torch.rand(len(p.icon), 5, generator=g).tolist()
    texts = []
    for i, colour, (none, style, concept, ground, bare) in zip(p.icon.tolist(), p.colour.tolist(), drawn, strict=True):
        say = (
            STYLE_WORDS[icons.style[i]] if style > 0.12 else None,
            CONCEPT_WORDS[icons.concept[i]] if concept > 0.04 else None,
            COLOUR_WORDS[colour] if ground > 0.12 else None,
        )
        texts.append("" if none < empty else caption(*say, bare=bare < 0.1))
    return texts
