"""Words that a model's own tokenizer has besides CLIP's, each with an embedding of its own: textual inversion."""

import json
from collections.abc import Iterator
from pathlib import Path

from minipnp.config import TextConfig
from minipnp.errors import InputError

OWN = {"<|startoftext|>", "<|endoftext|>", "!"}  # of CLIP, where a list has no numbers


def read_added_words(folder: Path) -> set[str]:
    """folder: a model's `tokenizer`, which need not be there. InputError: a file in it cannot be read.

    The words stand in one of several files, by the program that saved them. CLIP's own have numbers below 49408.
    """
    words = set()
    for name, words_in in FILES.items():
        try:
            if (folder / name).is_file():
                words |= {*words_in(json.loads((folder / name).read_text(encoding="utf-8")))}
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise InputError(f"{folder / name}: not a readable file of a tokenizer ({error}); get it again") from None
    return words


def _new(numbers: dict[str, int]) -> Iterator[str]:
    return (word.removesuffix("</w>") for word, number in numbers.items() if number >= TextConfig.vocabulary)


def _in_tokenizer(content: dict) -> Iterator[str]:
    yield from _new({word["content"]: word["id"] for word in content.get("added_tokens") or []})
    yield from _new(content["model"]["vocab"])


def _in_config(content: dict) -> Iterator[str]:
    yield from _new({word["content"]: int(number) for number, word in content.get("added_tokens_decoder", {}).items()})


def _in_special(content: dict) -> set[str]:
    listed = content.get("additional_special_tokens") or []
    return {word if isinstance(word, str) else word["content"] for word in listed} - OWN


FILES = {
    "added_tokens.json": _new,
    "vocab.json": _new,
    "tokenizer.json": _in_tokenizer,
    "tokenizer_config.json": _in_config,
    "special_tokens_map.json": _in_special,
}
