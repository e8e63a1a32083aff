"""How near a picture is to the nearest icon that the UNet was finished on: what is memory, and what is method?

300 icons, one for each style and concept, are nearly a table to look up. Two measures say how much of a picture is one
of them, whatever its place and size: the overlap of the outlines, each cut out and brought to one square, and the
cosine between the classifier's features, standardised over the icons. Real icons that were held back say how near a
picture is that cannot have been looked up, and the icons themselves, placed otherwise, how near a copy would be.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.measure.icons import Classifier, foreground, iou
from tools.bundled.data import Icons, draw, plain

SQUARE = 32  # pixels, of a cut-out outline


def cut_out(masks: Tensor) -> Tensor:
    """Masks [n, H, W] → their bounding boxes at one size, bool [n, SQUARE, SQUARE]. An empty mask stays empty."""
    found = []
    for mask in masks:
        rows, columns = (mask.any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows else mask
        found.append(F.interpolate(box[None, None].float(), (SQUARE, SQUARE), mode="area")[0, 0] > 0.5)
    return torch.stack(found)


class Memory:
    """The icons that a picture may have been looked up from."""

    def __init__(self, icons: Icons, classifier: Classifier):
        self.icons = icons
        self.classifier = classifier
        _, alpha = draw(icons, plain(list(range(len(icons))), ["white"] * len(icons)))
        self.outlines = cut_out(alpha[:, 0] > 0.5)
        self.on = cache(self._on)

    @torch.no_grad()
    def _on(self, colour: str) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the icons on this background, standardised and of length 1; and the mean and spread of them."""
        n = len(self.icons)
        parts = [range(first, min(first + 50, n)) for first in range(0, n, 50)]
        drawn = (draw(self.icons, plain(list(part), [colour] * len(part)))[0] for part in parts)
        features = torch.cat([self.classifier.features(x) for x in drawn])
        mean, spread = features.mean(dim=0), features.std(dim=0) + 1e-6
        return F.normalize((features - mean) / spread, dim=1), mean, spread

    @torch.no_grad()
    def nearest(self, picture: Tensor, colour: str) -> dict[str, float]:
        """Of a picture [1, 3, H, W] on this background: the largest overlap and the largest cosine with any icon."""
        outline = cut_out(foreground(picture))
        icons, mean, spread = self.on(colour)
        own = F.normalize((self.classifier.features(picture) - mean) / spread, dim=1)
        return {
            "nearest_iou": iou(outline.expand_as(self.outlines), self.outlines).max().item(),
            "nearest_cosine": (icons @ own[0]).max().item(),
        }
