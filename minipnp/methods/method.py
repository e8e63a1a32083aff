"""What an editing method is to the rest of the program: a name, a class of settings, and a function."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minipnp.guidance import Guidance
from minipnp.methods.original import Original
from minipnp.options import Options

Steps = Iterator[tuple[int, Tensor]]  # (level, latents [n, 4, h, w]) after each step


def never(s: Options) -> bool:
    return False


def always(s: Options) -> bool:
    return True


def nothing_to_check(o: Original, prompt: str, s: Options) -> None:
    pass


@dataclass(frozen=True)
class Method:
    """An editing method.

    name: on the command line. what: one line of help. settings: its options, a frozen dataclass of `Options`.
    run: (original, prompt, negative prompt or None, settings) → the steps of the edit, latents of one row.
    together: does the same for several prompts, a row each, where they share work; else they are run one by one.
    guidance: the denoising of the original that the method reads; None: it reads none, so nothing is inverted.
    needs_source: whether, with these settings, it needs a text for the original; or_else: what may stand in its place.
    under_both: whether its features may be taken under both texts of a generated original. own_inversion: it inverts a
    picture in a way of its own, without guidance.
    check: looks at words and files of one prompt before the original is inverted; raises InputError.
    reads_prompt: whether, with these settings, it reads the prompt; else the settings say what to make of the original.
    uses_source: whether it reads that text where there is one; None: only where it needs it. draws: it draws noise.
    source_scale: the guidance scale of a generated original; None: the edit's own, so that its own text gives it again.
    """

    name: str
    what: str
    settings: type[Options]
    run: Callable[[Original, str, str | None, Any], Steps]
    together: Callable[[Original, Sequence[str], str | None, Any], Steps] | None = None
    guidance: Callable[[Original, Any], Guidance] | None = None
    needs_source: Callable[[Any], bool] = never
    or_else: str = ""
    check: Callable[[Original, str, Any], None] = nothing_to_check
    reads_prompt: Callable[[Any], bool] = always
    uses_source: Callable[[Any], bool] | None = None
    draws: bool = False
    under_both: bool = True
    own_inversion: bool = False
    source_scale: float | None = None

    def reads_source(self, s: Options) -> bool:
        return (self.uses_source or self.needs_source)(s)
