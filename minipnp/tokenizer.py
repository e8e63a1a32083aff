"""Text to the 77 token ids that Stable Diffusion 1.x reads.

Byte-pair encoding by open_clip's `SimpleTokenizer` (docs/tokenizer.md: the texts that other CLIP tokenizers read
otherwise) in the row that SD-1.x was trained on, which is padded with <end>, where open_clip pads with 0:

    49406 <begin>, up to 75 tokens, 49407 <end>, 49407, ... 49407
"""

import importlib.util
import re
import string
import unicodedata
import warnings
from itertools import islice
from pathlib import Path

import torch

from minipnp.errors import InputError

BEGIN, END = 49406, 49407
LENGTH, ROOM = 77, 75  # of a row, for the prompt in it


def _open_clip_bpe():
    # Loading this one file takes 0.2 s, `import open_clip` 2.5 s (torchvision, timm). It is not entered in sys.modules,
    # so that a real `import open_clip` still works.
    path = Path(importlib.util.find_spec("open_clip").origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


class Tokenizer:
    def __init__(self):
        self.bpe = _open_clip_bpe()
        self._clean, self.bpe.clean_fn = self.bpe.clean_fn, str  # _words() cleans; twice would change "&amp;amp;lt;"

    def __call__(self, *prompts: str) -> torch.LongTensor:
        """Rows [n, 77]. A prompt over 75 tokens is cut, with a warning that quotes the cut. InputError: not UTF-8."""
        rows = []
        for ids in map(self.encode, prompts):
            if len(ids) > ROOM:
                warnings.warn(f"prompt is over {ROOM} tokens; not read: {self.decode(ids[ROOM:])!r}", stacklevel=2)
            rows.append(([BEGIN] + ids[:ROOM] + [END] * LENGTH)[:LENGTH])
        return torch.tensor(rows, dtype=torch.long).view(-1, LENGTH)

    def encode(self, prompt: str) -> list[int]:
        """Ids of the whole prompt, however long, without begin and end, which no text can produce."""
        # open_clip would read these two strings as begin and end; the blank makes text of them, changing no other token
        return self.bpe.encode(re.sub(r"<(?=(start|end)_of_text>)", "< ", " ".join(self._words(prompt))))

    def decode(self, ids) -> str:
        """Text (lower case) of ids, a list or tensor [n]; begin and end are left out, U+FFFD is part of a character."""
        return self.bpe.decode([i for i in torch.as_tensor(ids).tolist() if i not in (BEGIN, END)]).strip()

    def pieces(self, prompt: str) -> list[str]:
        """Text of each token of the whole prompt; piece i stands at position i + 1 of the row, if i < 75."""
        return [self.decode([i]) for i in self.encode(prompt)]

    def positions(self, prompt: str, word: str) -> list[int]:
        """Positions in the row (1...75) of the tokens of a word or phrase, for all its occurrences in the prompt.

        Words are what stands between blanks, in any case, without the punctuation around them: "cat" is in "A (CAT)!",
        not in "cats". InputError: it is not in the prompt, or an occurrence is cut off at 75 tokens.
        """
        words, phrase = self._words(prompt), [_core(w) for w in self._words(word)]
        cores, n = [_core(w) for w in words], len(phrase)
        hits = {i + k for i in range(len(words)) for k in range(n) if cores[i : i + n] == phrase}
        if not hits:
            raise InputError(f"{word!r} is not in the prompt, its words: {', '.join(dict.fromkeys(cores)) or '(none)'}")
        marks = []  # for each byte of the prompt without its blanks: does it belong to the word?
        for i, (w, core) in enumerate(zip(words, cores, strict=True)):
            before, after = w.split(core, 1)
            marks += [False] * len(before.encode()) + [i in hits] * len(core.encode()) + [False] * len(after.encode())
        marks = iter(marks)
        found = [position for position, size in enumerate(self._sizes(prompt), 1) if sum(islice(marks, size))]
        if found[-1] > ROOM:
            raise InputError(f"{word!r} is cut off, the prompt is over {ROOM} tokens: shorten it")
        return found

    def words(self, prompt: str) -> list[tuple[str, range]]:
        """The words of a prompt, in its order, with the punctuation on them, and the positions of each one's tokens.

        InputError: the prompt is over 75 tokens, so that its last words have no positions.
        """
        sizes, words, end = self._sizes(prompt), [], 1
        if len(sizes) > ROOM:
            raise InputError(f"the prompt that begins {prompt[:30]!r} is over {ROOM} tokens: shorten it")
        for word in self._words(prompt):
            begin, left = end, len(word.encode())
            while left > 0:
                left -= sizes[end - 1]
                end += 1
            words.append((word, range(begin, end)))
        return words

    def _sizes(self, prompt: str) -> list[int]:
        """How many bytes of the prompt without its blanks each token is."""
        return [len(self.bpe.decoder[i].removesuffix("</w>")) for i in self.encode(prompt)]  # one character a byte

    def _words(self, text: str) -> list[str]:
        if any("\ud800" <= c <= "\udfff" for c in text):  # undecodable bytes of a command line
            raise InputError(f"not valid UTF-8: {text!r}; type it in a UTF-8 terminal")
        return self._clean(text).split()


def _core(word: str) -> str:
    punctuation = [c for c in word if unicodedata.category(c).startswith("P") or c in string.punctuation]
    return word.strip("".join(punctuation)) or word  # punctuation alone is a word too
