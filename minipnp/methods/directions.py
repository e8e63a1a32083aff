"""Edit directions, Sec. 3.2 of pix2pix-zero: from a word to another, in the space of text embeddings.

    cat_to_dog = direction(sd.embed, sentences("cat"), sentences("dog"))

A word swap is such a direction too: `direction(sd.embed, [caption], [caption with the other word])`.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minipnp.errors import InputError
from minipnp.files.atomic import atomic

TEMPLATES = (
    "{}", "this is {}", "here we see {}", "{} and nothing else", "a picture of {}", "a photo of {}", "a drawing of {}",
    "a painting of {}", "a sketch of {}", "an icon of {}", "a flat icon of {}", "a sticker of {}", "a print of {}",
    "a simple picture of {}", "a detailed picture of {}", "a small drawing of {}", "a large painting of {}",
    "a bright photo of {}", "a dark photo of {}", "a close view of {}", "a picture of {} seen from the side",
    "a photo of {} in the middle", "{} on a white background", "an icon of {} on a blue background",
    "a drawing of {} on paper", "{} in the morning", "{} far away", "{}, drawn by hand", "{}, in colour",
    "in this picture there is {}", "in the foreground {}", "on the left {}",
)  # fmt: skip


def sentences(word: str) -> list[str]:
    """The templates about a word or phrase, which gets an article."""
    if not (word := " ".join(word.split())):
        raise InputError("an edit direction needs two words: one of them is empty")
    article = "an" if word[0].lower() in "aeiou" else "a"
    return [template.format(f"{article} {word}") for template in TEMPLATES]


def read_sentences(path: Path | str) -> list[str]:
    """A file of sentences about one word, one on each line; empty lines are skipped."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({getattr(error, 'strerror', None) or error})") from None
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"{path}: there is no sentence in it, write one on each line")
    return found


def direction(embed: Callable[..., Tensor], source: list[str], target: list[str], batch: int = 32) -> Tensor:
    """Δc: the mean embedding of the target's sentences − that of the source's, [1, 77, width] in float32.

    embed: n sentences → [n, 77, width], as `StableDiffusion.embed`. batch: how many it is given at once.
    """

    def mean(texts: list[str]) -> Tensor:
        return sum(embed(*texts[i : i + batch]).float().sum(0) for i in range(0, len(texts), batch)) / len(texts)

    if not source or not target:
        raise InputError("an edit direction needs a sentence or more for each of its two words")
    if source == target:
        raise InputError(f"an edit direction between the same sentences ({source[0]!r} …) is none: give another word")
    return (mean(target) - mean(source))[None]


def save_direction(path: Path | str, delta: Tensor, source: str, target: str, n: int) -> None:
    """delta: [1, 77, width]. source, target: its two words, or the names of their files. n: the number of sentences.

    InputError: something else is there.
    """
    about = {"source": source, "target": target, "sentences": str(n), "width": str(delta.shape[-1])}
    delta = delta.float().cpu().contiguous()
    if os.path.lexists(path):
        if not _holds(path, delta, about):
            raise InputError(f"{path}: something else is there already; give another name for the direction")
        return
    with atomic(path) as temporary:
        temporary.write_bytes(save({"direction": delta}, about))


def _holds(path: Path | str, delta: Tensor, about: dict[str, str]) -> bool:
    """Not by the bytes of the file, in which the order of `about` is no one's choice."""
    try:
        there, of = load_direction(path, delta.shape[-1])
    except InputError:
        return False
    return of == about and torch.equal(there, delta)


def load_direction(path: Path | str, width: int) -> tuple[Tensor, dict[str, str]]:
    """Δc [1, 77, width] on the CPU, and what was saved with it. width: of the text embeddings, 768 in SD-1.x."""
    try:
        with safe_open(path, framework="pt") as file:
            delta = file.get_tensor("direction")
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a saved edit direction ({error})") from None
    if delta.shape != (1, 77, width):
        raise InputError(f"{path}: a direction of shape {list(delta.shape)}, this model takes {[1, 77, width]}")
    return delta, about
