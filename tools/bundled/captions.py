"""What is said of a picture, and its token ids: `a flat icon of a cow on a blue background`.

Byte-pair encoding works word by word, so the ids of every caption follow from those of its words. tokens.json holds
them, and the machine that trains needs no tokenizer.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from minipnp.errors import InputError
from minipnp.files.atomic import write_text_atomic
from minipnp.tokenizer import BEGIN, END, LENGTH, Tokenizer
from tools.bundled import run
from tools.bundled.concepts import COLOURS, TRAINED_CONCEPTS, TRAINED_STYLES
from tools.bundled.fetch import DATA

TEMPLATE = "a STYLE icon of a CONCEPT on a COLOUR background"
WITHOUT_ARTICLE = ("grapes", "cherries", "french fries")


def article(words: str) -> str:
    """`an owl`, `a unicorn`, `grapes`."""
    if words in WITHOUT_ARTICLE:
        return words
    return f"{'an' if words[0] in 'aeio' or words == 'umbrella' else 'a'} {words}"


def caption(style: str | None = None, concept: str | None = None, colour: str | None = None, bare=False) -> str:
    """The template, shorter where something is not said. bare: without `icon of`, where there is a concept."""
    if bare and concept:
        said = article(concept if style is None or concept in WITHOUT_ARTICLE else f"{style} {concept}")
        said = f"{style} {concept}" if style and concept in WITHOUT_ARTICLE else said
    else:
        said = (article(f"{style} icon") if style else "an icon") + (f" of {article(concept)}" if concept else "")
    return said + (f" on {article(colour)} background" if colour else "")


def vocabulary() -> list[str]:
    """Every word of every caption."""
    said = [caption(style, None, colour) for style in TRAINED_STYLES for colour in COLOURS]
    said += [caption(None, concept) for concept in TRAINED_CONCEPTS]
    said += [caption(style, concept, bare=True) for style in TRAINED_STYLES for concept in TRAINED_CONCEPTS]
    return sorted({word for text in said for word in text.split()})


class Tokens:
    """A stand-in for `Tokenizer` that knows the captions' words only."""

    def __init__(self, words: dict[str, list[int]]):
        self.words = words
        self.row = cache(self._row)

    @classmethod
    def read(cls, data: Path) -> "Tokens":
        return cls(json.loads((data / "tokens.json").read_text(encoding="utf-8")))

    def __call__(self, *captions: str) -> Tensor:
        """Rows [n, 77] of token ids."""
        return torch.stack([self.row(text) for text in captions])

    def _row(self, text: str) -> Tensor:
        if unknown := [word for word in text.split() if word not in self.words]:
            raise InputError(f"{text!r}: no caption's words: {', '.join(unknown)}")
        ids = [i for word in text.split() for i in self.words[word]]
        return torch.tensor(([BEGIN] + ids + [END] * LENGTH)[:LENGTH])

    def used(self) -> Tensor:
        """The ids that occur in captions."""
        return torch.tensor(sorted({BEGIN, END, *(i for ids in self.words.values() for i in ids)}))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Token ids of the captions' words: tokens.json")
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args(argv).data
    tokenizer = Tokenizer()
    write_text_atomic(json.dumps({word: tokenizer.encode(word) for word in vocabulary()}), data / "tokens.json")


if __name__ == "__main__":
    run(main)
