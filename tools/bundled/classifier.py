"""Step 4: a small network that tells style, concept and background of a picture. → out/bundled/classifier.pt

It is the evaluation's judge (minipnp/measure/icons.py has the network) and ships with the weights. It is trained on
real icons alone, and not on those held back, so that how good it is on icons that it has not seen can be stated: on
styles with held-out concepts, on concepts in the held-out style. It tells the styles and concepts that the finished
model draws. Icons of which it can name one of the two alone, a blob cat, say, teach it that one.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.errors import InputError
from minipnp.measure.icons import CHANNELS, Classifier, Vocabulary, load_classifier
from tools.bundled import run
from tools.bundled.concepts import COLOURS, FINISHED_CONCEPTS, FINISHED_STYLES
from tools.bundled.data import CONCEPT_WORDS, STYLE_WORDS, Icons, draw, generator, noise_generator, placed
from tools.bundled.training import (
    Clock,
    Plan,
    State,
    Team,
    adopt,
    autocast,
    before,
    options,
    settle,
    size_for,
    there,
    train,
)

WORDS = Vocabulary(FINISHED_STYLES, FINISHED_CONCEPTS, tuple(COLOURS))
UNNAMED = -100  # what `cross_entropy` passes over
PLANS = {"cpu": Plan(batch=64, lr=2e-3, samples=120_000), "gpu": Plan(batch=128, lr=2e-3, samples=600_000)}


def adopted(folder: Path) -> Classifier:
    """The one that ships with a model. InputError: there is none, or it knows other words."""
    classifier = load_classifier(folder / "classifier")
    if classifier.words != WORDS:
        raise InputError(f"{folder / 'classifier'}: a classifier of other words than this recipe's")
    return classifier


def index(word: str, words: tuple[str, ...]) -> int:
    return words.index(word) if word in words else UNNAMED


def main(argv: list[str] | None = None) -> State:
    args = options(__doc__.splitlines()[0]).parse_args(argv)
    size = size_for(args.size, args.origin)
    device, plan = settle(args, PLANS)
    about = {"channels": CHANNELS, "size": size, "words": list(WORDS)}
    if args.origin:
        return there(args.work, "classifier") or adopt(
            args.work, "classifier", adopted(args.origin), about | before(args.origin, "classifier")
        )
    icons = Icons.read(args.data, size).trained().to(device)
    style = torch.tensor([index(STYLE_WORDS[i], FINISHED_STYLES) for i in icons.style])
    concept = torch.tensor([index(CONCEPT_WORDS[i], FINISHED_CONCEPTS) for i in icons.concept])
    icons, style, concept = (x[(style != UNNAMED) | (concept != UNNAMED)] for x in (icons, style, concept))
    torch.manual_seed(plan.seed)
    classifier, team = Classifier(WORDS, size).to(device), Team()

    def loss_at(step: int) -> Tensor:
        n, part = plan.batch // team.parts, step * team.parts + team.part
        g = generator(plan.seed, part)
        p = placed(icons, n, g)
        x, _ = draw(icons, p)
        noise = torch.randn(x.shape, generator=noise_generator(plan.seed, part, device), device=device)
        strength = 0.1 * torch.rand(n, 1, 1, 1, generator=g).to(device)
        torch.manual_seed(part)  # dropout's, so that a resumed run draws the same
        with autocast(device):
            seen = classifier(x + strength * noise)
        wanted = (style[p.icon], concept[p.icon], p.colour)
        return sum(F.cross_entropy(x.float(), truth.to(device)) for x, truth in zip(seen, wanted, strict=True))

    return train("classifier", classifier, about, loss_at, plan, args.work, Clock(args.minutes), team=team)


if __name__ == "__main__":
    run(main)
