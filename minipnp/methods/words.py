"""Words of a prompt, and where their tokens stand in its row: what an edit of a word needs."""

import string
import unicodedata
from itertools import islice

from minipnp.errors import InputError
from minipnp.tokenizer import ROOM, Tokenizer

SOURCE = "the source's text"


def positions(tokenizer: Tokenizer, prompt: str, word: str, text: str = "the prompt") -> list[int]:
    """Positions in the row (1...75) of the tokens of a word or phrase, for all its occurrences in the prompt.

    Words are what stands between blanks, in any case, without the punctuation around them: "cat" is in "A (CAT)!",
    not in "cats". text: what the prompt is called in errors. InputError: it is not in the prompt, or an occurrence is
    cut off at 75 tokens.
    """
    words = tokenizer.split(prompt)
    phrase = [_core(w) for w in tokenizer.split(word)]
    cores = [_core(w) for w in words]
    n = len(phrase)
    hits = {i + k for i in range(len(words)) for k in range(n) if cores[i : i + n] == phrase}
    if not hits:
        raise InputError(f"{word!r} is not in {text}, its words: {', '.join(dict.fromkeys(cores)) or '(none)'}")
    marks = []  # for each byte of the prompt without its blanks: does it belong to the word?
    for i, (w, core) in enumerate(zip(words, cores, strict=True)):
        before, after = w.split(core, 1)
        marks += [False] * len(before.encode()) + [i in hits] * len(core.encode()) + [False] * len(after.encode())
    marks = iter(marks)
    found = [position for position, size in enumerate(_sizes(tokenizer, prompt), 1) if sum(islice(marks, size))]
    if found[-1] > ROOM:
        raise InputError(f"{word!r} is cut off, {text} is over {ROOM} tokens: shorten it")
    return found


def words_of(tokenizer: Tokenizer, prompt: str) -> list[tuple[str, range]]:
    """The words of a prompt, in its order, with the punctuation on them, and the positions of each one's tokens.

    InputError: the prompt is over 75 tokens, so that its last words have no positions.
    """
    sizes = _sizes(tokenizer, prompt)
    words = []
    end = 1
    if len(sizes) > ROOM:
        raise InputError(f"the prompt that begins {prompt[:30]!r} is over {ROOM} tokens: shorten it")
    for word in tokenizer.split(prompt):
        begin = end
        left = len(word.encode())
        while left > 0:
            left -= sizes[end - 1]
            end += 1
        words.append((word, range(begin, end)))
    return words


def pair_of(word: str) -> tuple[str, str]:
    """ "horse=cow" → ("horse", "cow"), for the source's prompt and the target's; "horse" → the same twice."""
    before, equals, after = word.partition("=")
    return before, after if equals else before


def word_positions(tokenizer: Tokenizer, source: str, prompt: str, word: str) -> tuple[list[int], list[int]]:
    """Positions of a word, "horse" or "horse=cow", in the source's prompt and in the target's."""
    before, after = pair_of(word)
    return positions(tokenizer, source, before, SOURCE), positions(tokenizer, prompt, after)


def _sizes(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """How many bytes of the prompt without its blanks each token is."""
    return [
        len(tokenizer.bpe.decoder[i].removesuffix("</w>")) for i in tokenizer.encode(prompt)
    ]  # one character a byte


def _core(word: str) -> str:
    punctuation = [c for c in word if unicodedata.category(c).startswith("P") or c in string.punctuation]
    return word.strip("".join(punctuation)) or word  # punctuation alone is a word too
