"""What a small model's prompts may say: the words.json beside its weights. Stable Diffusion has none and needs none."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from minipnp.advice import Advice
from minipnp.errors import InputError

FILE = "words.json"


@dataclass(frozen=True)
class KnownWords:
    """template: how its captions read. categories: its concepts, by their kind. advice: the settings that suit it."""

    template: str
    styles: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    colours: tuple[str, ...]
    advice: Advice = Advice()

    @classmethod
    def of(cls, model: Path) -> "KnownWords | None":
        """Those of a model's folder; None: it has no list. InputError: the list cannot be read."""
        if not (place := model / FILE).is_file():
            return None
        try:
            said = json.loads(place.read_text(encoding="utf-8"))
            kinds = dict.fromkeys(said["categories"].values())
            categories = {kind: tuple(w for w, k in said["categories"].items() if k == kind) for kind in kinds}
            advice = Advice(**said.get("advice", {}))
            return cls(said["template"], tuple(said["styles"]), categories, tuple(said["colours"]), advice)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{place}: not a list of words as minipnp writes it ({error!r})") from None

    def __iter__(self):
        yield from (*self.styles, *(w for words in self.categories.values() for w in words), *self.colours)

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the model has not learnt, in any case: of "a noto icon of cats" it is cats."""
        said = prompt.lower()
        for words in sorted((word.lower() for word in self), key=len, reverse=True):  # "high contrast" before "high"
            said = re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", " ", said)
        learnt = {*re.findall(r"[a-z]+", self.template), "an", "the"}
        return [word for word in dict.fromkeys(re.findall(r"\w+", said)) if word not in learnt]

    def __str__(self) -> str:
        lists = {"STYLE": self.styles, "COLOUR": self.colours} | {
            f"CONCEPT, {kind}": words for kind, words in self.categories.items()
        }
        return "\n".join([self.template, *(f"{name}: {', '.join(words)}" for name, words in lists.items())])


def advice_of(model: Path) -> Advice:
    """What the model in this place advises; the paper's settings, where it has no words.json or somebody else's."""
    try:
        known = KnownWords.of(model)
    except InputError:
        return Advice()
    return known.advice if known else Advice()
