"""Text to the 77 token ids that Stable Diffusion 1.x reads.

Byte-pair encoding by open_clip's `SimpleTokenizer` (docs/tokenizer.md: the texts that other CLIP tokenizers read
otherwise) in the row that SD-1.x was trained on, which is padded with <end>, where open_clip pads with 0:

    49406 <begin>, up to 75 tokens, 49407 <end>, 49407, ... 49407
"""

import importlib.util
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from minipnp.errors import InputError

BEGIN = 49406
END = 49407
# of a row, for the prompt in it
LENGTH = 77
ROOM = 75


def _open_clip_bpe():
    # Loading this one file takes 0.2 s, `import open_clip` 2.5 s (torchvision, timm). It is not entered in sys.modules,
    # so that a real `import open_clip` still works.
    path = Path(importlib.util.find_spec("open_clip").origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


# What web UIs read in a prompt: weights (word:1.3), ((word)), [word:0.5], parts of models <lora:name:0.8>.
SYNTAX = re.compile(r"<\w+:[^<>]*>|\([^()]*:\s*[\d.]+\)|\(\([^()]*\)\)|\[[^\[\]]*:\s*[\d.]+\]|\bembedding:\S+")


def _bounded(word: str) -> str:
    """A pattern that finds the word where no letter or digit goes on with it."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


class Tokenizer:
    """added: words that the model's own tokenizer has besides CLIP's. They are not read here, and refused."""

    def __init__(self, added: Iterable[str] = ()):
        self.bpe = _open_clip_bpe()
        # As words of their own: "sks" is not in "asks". The longest first: "<cat-toy>" begins "<cat-toy>_1".
        words = [_bounded(word) for word in sorted(filter(None, added), key=len, reverse=True)]
        self._added = re.compile("|".join(words) or r"(?!)", re.IGNORECASE)
        # split() cleans; twice would change "&amp;amp;lt;"
        self._clean = self.bpe.clean_fn
        self.bpe.clean_fn = str

    def __call__(self, *prompts: str) -> torch.LongTensor:
        """Rows [n, 77]. InputError: not UTF-8.

        Warns of a prompt over 75 tokens, which is cut, and of weights and parts of models as web UIs write them.
        """
        rows = []
        for prompt, ids in zip(prompts, map(self.encode, prompts), strict=True):
            if syntax := SYNTAX.findall(prompt):
                warnings.warn(f"{' '.join(syntax)} is read letter by letter: it is no weight and no LoRA", stacklevel=2)
            if len(ids) > ROOM:
                warnings.warn(f"prompt is over {ROOM} tokens; not read: {self.decode(ids[ROOM:])!r}", stacklevel=2)
            rows.append(([BEGIN] + ids[:ROOM] + [END] * LENGTH)[:LENGTH])
        return torch.tensor(rows, dtype=torch.long).view(-1, LENGTH)

    def encode(self, prompt: str) -> list[int]:
        """Ids of the whole prompt, however long, without begin and end, which no text can produce.

        InputError: it has a word that the model's own tokenizer adds.
        """
        text = " ".join(self.split(prompt))
        if found := self._added.search(text):
            raise InputError(
                f"{found[0]!r} is a word that this model's own tokenizer adds (textual inversion), which would be read "
                "as other words here: leave it out of the prompt"
            )
        # open_clip would read these two strings as begin and end; the blank makes text of them, changing no other token
        return self.bpe.encode(re.sub(r"<(?=(start|end)_of_text>)", "< ", text))

    def decode(self, ids) -> str:
        """Text (lower case) of ids, a list or tensor [n]; begin and end are left out, U+FFFD is part of a character."""
        return self.bpe.decode([i for i in torch.as_tensor(ids).tolist() if i not in (BEGIN, END)]).strip()

    def split(self, text: str) -> list[str]:
        """The cleaned text at its blanks: what encode reads."""
        if any("\ud800" <= c <= "\udfff" for c in text):  # undecodable bytes of a command line
            raise InputError(f"not valid UTF-8: {text!r}; type it in a UTF-8 terminal")
        return self._clean(text).split()
