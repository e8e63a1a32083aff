"""The measures of the bundled model's icons, which need no download: a small classifier, and masks by colour.

- Text fidelity: the share of style, concept and background colour of the prompt that the classifier sees in the
  picture. Text probability: the mean of the probabilities that it gives to the three. The classifier ships with the
  bundled model and was trained on real icons alone (docs/bundled.md has its own accuracy). Its input: RGB in [−1, 1],
  brought to the size that it was trained on (bilinear, antialiased).
- Layout: IoU of the foregrounds of guidance and translation; 1 for the same outline. A picture's foreground is what is
  farther than THRESHOLD from the colour of its border.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.errors import InputError

ASPECTS = ("style", "concept", "colour")
CHANNELS = (32, 64, 128, 192, 192)
THRESHOLD = 32  # Euclidean, in sRGB levels of 0 … 255; the one that agrees best with the true coverage of real icons


class Vocabulary(NamedTuple):
    """What the classifier can see."""

    styles: tuple[str, ...]
    concepts: tuple[str, ...]
    colours: tuple[str, ...]


class Logits(NamedTuple):
    """Logits, or indices, by ASPECTS."""

    style: Tensor
    concept: Tensor
    colour: Tensor


class Classifier(nn.Module):
    """size: the side of the pictures that it was trained on, in pixels."""

    def __init__(self, words: Vocabulary, size: int, channels: tuple[int, ...] = CHANNELS):
        super().__init__()
        self.words = words
        self.size = size
        self.channels = channels
        widths = (3, *channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.heads = nn.ModuleList(nn.Linear(2 * sum(channels), len(names)) for names in words)

    def forward(self, x: Tensor) -> Logits:
        """x: pictures [n, 3, size, size] in [−1, 1]."""
        features = self.pooled(x)
        return Logits(*(head(F.dropout(features, 0.2, self.training)) for head in self.heads))

    def pooled(self, x: Tensor) -> Tensor:
        """What the heads read of pictures [n, 3, size, size]: [n, 2 · the stages' channels]."""
        features = []  # of every stage: what is there, and how unevenly; a style shows in the early ones
        for stage in self.stages:
            x = stage(x)
            features += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        return torch.cat(features, dim=1)

    @torch.no_grad()
    def read(self, x: Tensor) -> list[tuple[str, str, str]]:
        """The likeliest style, concept and colour of each picture [n, 3, H, W], at any size."""
        best = (scores.argmax(dim=1).tolist() for scores in self.scores(x))
        return [tuple(names[i] for names, i in zip(self.words, row, strict=True)) for row in zip(*best, strict=True)]

    @torch.no_grad()
    def sure_of(self, x: Tensor) -> dict[str, dict[str, float]]:
        """The probability, 0 to 1, of every word that it knows, by aspect; of one picture [1, 3, H, W]."""
        sure = (scores.softmax(dim=1)[0].tolist() for scores in self.scores(x))
        return {
            aspect: dict(zip(names, row, strict=True))
            for aspect, names, row in zip(ASPECTS, self.words, sure, strict=True)
        }

    def scores(self, x: Tensor) -> Logits:
        """The logits of pictures [n, 3, H, W] of any size."""
        return self(self.suited(x))

    def features(self, x: Tensor) -> Tensor:
        """What the heads read of pictures [n, 3, H, W] of any size."""
        return self.pooled(self.suited(x))

    def suited(self, x: Tensor) -> Tensor:
        """Pictures of any size, brought to its own."""
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x.to(self.heads[0].weight)

    @property
    def config(self) -> dict:
        """What config.json holds beside its weights."""
        return {"size": self.size, "channels": list(self.channels)} | {
            k: list(v) for k, v in self.words._asdict().items()
        }


def load_classifier(folder: Path) -> Classifier:
    """The one in `folder`, which has config.json and model.safetensors. InputError: there is none, or it is damaged."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        words = Vocabulary(*(tuple(config[name]) for name in Vocabulary._fields))
        classifier = Classifier(words, config["size"], tuple(config["channels"]))
        weights = {name: x.float() for name, x in load_file(folder / "model.safetensors").items()}
    except FileNotFoundError:
        raise InputError(
            f"{folder}: the classifier that judges the bundled model's pictures is missing (this model was exported "
            "without one); measure without it: --metrics iou"
        ) from None
    except Exception as error:  # of JSON, of safetensors, or for what is not in the file
        raise InputError(f"{folder}: not a classifier's folder, or damaged ({type(error).__name__}: {error})") from None
    if {name: x.shape for name, x in weights.items()} != {n: x.shape for n, x in classifier.state_dict().items()}:
        raise InputError(f"{folder}: model.safetensors has other words or widths than config.json says")
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False)


def foreground(x: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Pictures [n, 3, H, W] in [−1, 1] → bool [n, H, W]. The border's colour is its median, channel by channel."""
    ring = max(1, x.shape[-1] // 64)
    inside = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
    inside[ring:-ring, ring:-ring] = True
    border = x[:, :, ~inside].median(dim=2).values
    return 127.5 * (x - border[:, :, None, None]).norm(dim=1) > threshold


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks [n, H, W] → [n]; two empty masks agree."""
    union = (a | b).sum(dim=(1, 2))
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
