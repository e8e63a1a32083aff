"""Prompt-to-Prompt's words: which of the target's 77 positions take whose attention, how strongly, in which steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import Tensor

from minipnp.errors import InputError
from minipnp.methods.words import words_of
from minipnp.tokenizer import BEGIN, END, LENGTH, ROOM, Tokenizer

Share = float | tuple[float, float]  # of the steps, from the noisiest: up to here, or from the first to the second


ALIGNMENTS = ("auto", "swap", "phrase")  # auto: by words where both prompts have as many, else as a new phrase


class Alignment(NamedTuple):
    """R: [77, 77], the weight with which a source position (row) goes to a target position (column).

    taken: [77], 1 where the target takes its map from the source, 0 where it keeps its own.
    """

    R: Tensor
    taken: Tensor


def word_swap(tokenizer: Tokenizer, source: str, target: str, as_published=False) -> Alignment:
    """The n-th word of the target takes the map of the n-th word of the source; n tokens share one with 1/n each.

    Then come <end> and the padding, one to one; where one prompt has more of it, its surplus stands against the last of
    the other. So each source token's attention is handed on wholly: every row of R sums to 1.
    as_published: as in the authors' code, which after the last word that differs goes by the target's position, also
    where the text is shifted by then. InputError: the prompts differ in their number of words.
    """
    a = words_of(tokenizer, source)
    b = words_of(tokenizer, target)
    if len(a) != len(b):
        raise InputError(_not_alignable([word for word, _ in a], [word for word, _ in b]))
    spans = [(range(1), range(1)), *((i, j) for (_, i), (_, j) in zip(a, b, strict=True))]
    i = spans[-1][0].stop
    j = spans[-1][1].stop
    n = LENGTH - 1 - max(i, j)
    spans += [(range(i, i + n), range(j, j + n)), (range(i + n, LENGTH), range(j + n, LENGTH))]
    R = torch.zeros(LENGTH, LENGTH)
    for i, j in spans:
        R[i.start : i.stop, j.start : j.stop] = torch.eye(len(i)) if len(i) == len(j) else 1 / len(j)
    if as_published:
        i, j = max(((i.stop, j.stop) for (v, i), (w, j) in zip(a, b, strict=True) if v != w), default=(0, 0))
        n = LENGTH - max(i, j)
        R[:, j:] = 0
        R[j : j + n, j : j + n] = torch.eye(n)
    return Alignment(R, torch.ones(LENGTH))


def _not_alignable(a: list[str], b: list[str]) -> str:
    """The line that says where two prompts of different lengths part."""
    runs = SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes()
    said = ", ".join(f"{' '.join(a[i:m])!r} → {' '.join(b[j:n])!r}" for kind, i, m, j, n in runs if kind != "equal")
    return (
        f"word swap needs as many words in both prompts, not {len(a)} and {len(b)} ({said}); align them as a new phrase"
    )


def new_phrase(tokenizer: Tokenizer, source: str, target: str, as_published=False) -> Alignment:
    """Tokens that both prompts have, in the same order, take the source's map; those that are new keep their own.

    Padding takes the padding at its own position. as_published: also where the source still has text there.
    """
    x, y = ([BEGIN, *tokenizer.encode(prompt)[:ROOM], END] for prompt in (source, target))
    columns = needleman_wunsch(x, y)
    columns += [j if as_published else min(max(j, len(x)), LENGTH - 1) for j in range(len(y), LENGTH)]
    R = torch.zeros(LENGTH, LENGTH)
    for j, i in enumerate(columns):
        if i is not None:
            R[i, j] = 1
    return Alignment(R, R.sum(dim=0))


def needleman_wunsch(x: Sequence[int], y: Sequence[int]) -> list[int | None]:
    """For each token of y, where in x its partner stands; None: it is new. Gap 0, match 1, mismatch −1."""
    S = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]  # the best score of the first i tokens of x and j of y
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            S[i][j] = max(S[i][j - 1], S[i - 1][j], S[i - 1][j - 1] + (1 if a == b else -1))
    partners = [None] * len(y)
    i = len(x)
    j = len(y)
    while i > 0 and j > 0:  # of equally good ways back: left, up, diagonal
        if S[i][j] == S[i][j - 1]:
            j -= 1
        elif S[i][j] == S[i - 1][j]:
            i -= 1
        else:
            i = i - 1
            j = j - 1
            partners[j] = i
    return partners


def equalizer(weights: Mapping[int, float]) -> Tensor:
    """Factors by position of the target → [77], 1 elsewhere."""
    c = torch.ones(LENGTH)
    for position, weight in weights.items():
        if not math.isfinite(weight):
            raise InputError(f"weight {weight} of a word: give a finite number")
        c[position] = weight
    return c


def steps_in(share: Share, n: int) -> range:
    """The steps of n that a share covers. Rounding loses none: 0.29 of 100 are 29, though 0.29 · 100 is 28.999…."""
    start, end = (0.0, share) if isinstance(share, float | int) else share
    if not 0 <= start <= end <= 1:
        raise InputError(f"{share} of the steps: give a share from 0 to 1, or where it starts and where it ends")
    return range(math.floor(start * n + 1e-9), math.floor(end * n + 1e-9))


def as_share(value: Share) -> Share:
    """The value of an option that is a share. ValueError: it is none."""
    try:
        steps_in(value, 1)
    except InputError:
        raise ValueError from None
    return value if isinstance(value, float | int) else tuple(value)


def shares_of_words(values: Mapping[str, Share] | Iterable[tuple[str, Share]]) -> tuple[tuple[str, Share], ...]:
    pairs = values.items() if isinstance(values, Mapping) else values
    return tuple((word, as_share(value)) for word, value in pairs)


def windows(steps: int, share: Share, words: Mapping[int, Share]) -> Tensor:
    """Where a step edits the map of a position: [steps, 77], 1 or 0. Shares are of steps + 1, as the authors count."""
    c = torch.zeros(steps, LENGTH)
    for position in range(LENGTH):
        n = steps_in(words.get(position, share), steps + 1)
        c[n.start : n.stop, position] = 1
    return c
