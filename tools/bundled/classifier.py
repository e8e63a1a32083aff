"""Step 4: a small network that tells style, concept and background of a picture. → out/bundled/classifier.pt

It is the evaluation's judge and ships with the weights. It is trained on real icons alone, and not on those held back,
so that how good it is on icons that it has not seen can be stated: on styles with held-out concepts, on concepts in the
held-out style.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.errors import InputError
from tools.bundled import run
from tools.bundled.concepts import COLOURS, TRAINED_CONCEPTS, TRAINED_STYLES
from tools.bundled.data import COLOUR_WORDS, CONCEPT_WORDS, STYLE_WORDS, Icons, draw, generator, noise_generator, placed
from tools.bundled.training import Clock, Plan, State, adopt, autocast, options, read, settle, train

CHANNELS = (32, 64, 128, 192, 192)
PLANS = {"cpu": Plan(batch=64, lr=2e-3, samples=200_000), "gpu": Plan(batch=128, lr=2e-3, samples=600_000)}


class Seen(NamedTuple):
    """Logits, or indices: of TRAINED_STYLES, TRAINED_CONCEPTS and COLOUR_WORDS."""

    style: Tensor
    concept: Tensor
    colour: Tensor

    def words(self) -> list[tuple[str, str, str]]:
        """The likeliest of each, for every picture."""
        best = (scores.argmax(dim=1).tolist() for scores in self)
        return [(TRAINED_STYLES[s], TRAINED_CONCEPTS[c], COLOUR_WORDS[b]) for s, c, b in zip(*best, strict=True)]


class Classifier(nn.Module):
    def __init__(self, channels: tuple[int, ...] = CHANNELS):
        super().__init__()
        widths = (3, *channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        classes = (len(TRAINED_STYLES), len(TRAINED_CONCEPTS), len(COLOURS))
        self.heads = nn.ModuleList(nn.Linear(2 * sum(channels), n) for n in classes)

    def forward(self, x: Tensor) -> Seen:
        """x: pictures [n, 3, H, W] in [−1, 1]."""
        features = []  # of every stage: what is there, and how unevenly; a style shows in the early ones
        for stage in self.stages:
            x = stage(x)
            features += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        features = torch.cat(features, dim=1)
        return Seen(*(head(F.dropout(features, 0.2, self.training)) for head in self.heads))


def load(folder: Path) -> Classifier:
    """The one that ships with a model. InputError: there is none, or it knows other words."""
    place = folder / "classifier" / "model.safetensors"
    if not place.exists():
        raise InputError(f"{place}: not there; give a folder that tools.bundled.export wrote")
    classifier = Classifier()
    weights = {name: tensor.float() for name, tensor in load_file(place).items()}
    if {name: x.shape for name, x in weights.items()} != {n: x.shape for n, x in classifier.state_dict().items()}:
        raise InputError(f"{place}: a classifier of other words or widths than this recipe's")
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False)


def main(argv: list[str] | None = None) -> State:
    args = options(__doc__.splitlines()[0]).parse_args(argv)
    device, size, plan = settle(args, PLANS)
    about = {"channels": CHANNELS, "size": size, "words": [TRAINED_STYLES, TRAINED_CONCEPTS, tuple(COLOURS)]}
    if args.origin:
        return read(args.work, "classifier") or adopt(args.work, "classifier", load(args.origin), about)
    icons = Icons.read(args.data, size).trained().to(device)
    style = torch.tensor([TRAINED_STYLES.index(STYLE_WORDS[i]) for i in icons.style])
    concept = torch.tensor([TRAINED_CONCEPTS.index(CONCEPT_WORDS[i]) for i in icons.concept])
    torch.manual_seed(plan.seed)
    classifier = Classifier().to(device)

    def loss_at(step: int) -> Tensor:
        g = generator(plan.seed, step)
        p = placed(icons, plan.batch, g)
        x, _ = draw(icons, p)
        noise = torch.randn(x.shape, generator=noise_generator(plan.seed, step, device), device=device)
        strength = 0.1 * torch.rand(plan.batch, 1, 1, 1, generator=g).to(device)
        torch.manual_seed(step)  # dropout's, so that a resumed run draws the same
        with autocast(device):
            seen = classifier(x + strength * noise)
        wanted = (style[p.icon], concept[p.icon], p.colour)
        return sum(F.cross_entropy(x.float(), truth.to(device)) for x, truth in zip(seen, wanted, strict=True))

    return train("classifier", classifier, about, loss_at, plan, args.work, Clock(args.minutes))


if __name__ == "__main__":
    run(main)
