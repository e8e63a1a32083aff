"""What a command says on its way, and what it notes for the records."""

import contextlib
import sys
import time
import warnings
from collections.abc import Iterable, Iterator

from tqdm import tqdm


class Log:
    """What is said, all on stderr: stdout has the paths of the results. What is noted, and how long things took."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.notes = []
        self.seconds = {}
        self.due = {}
        self.pictures = 1
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    def write(self, text: str) -> None:
        tqdm.write(" ".join(text.splitlines()), file=sys.stderr)  # print() would write into the bar

    def failed(self, reason: str) -> None:
        """What is skipped, while the rest goes on."""
        self.write(f"minipnp: error: {reason}; skipped")

    def say(self, text: str) -> None:
        if not self.quiet:
            self.write(text)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.write(f"note: {text}")

    @contextlib.contextmanager
    def warnings_as_notes(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: self.note(" ".join(str(message).splitlines()))
            yield

    @contextlib.contextmanager
    def clock(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - began, 3)

    def expect(self, due: dict[str, int], pictures: int = 1) -> None:
        """Says how many evaluations come, by the names of `progress`; how long they take follows once it is known."""
        self.due = due
        self.pictures = pictures
        each = " for each picture" if pictures > 1 else ""
        phases = ", ".join(f"{n:,} {what}" for what, n in due.items())
        self.say(f"{sum(due.values()):,} evaluations of the network{each} ({phases})")

    def progress(self, things: Iterable, total: int, what: str) -> Iterator:
        """The things, behind a bar. From the time of the first few follows that of the whole run."""
        bar = tqdm(things, what, total, file=sys.stderr, disable=self.quiet or not sys.stderr.isatty())
        for done, thing in enumerate(bar, 1):
            if done == 2:  # the first one warms up
                began = time.perf_counter()
            if done == 5 and what in self.due:
                evaluation = (time.perf_counter() - began) / 3 * total / self.due[what]
                minutes = evaluation * sum(self.due.values()) * self.pictures / 60
                if minutes > 1:
                    self.say(f"about {minutes:.0f} min in all")
                self.due = {}
            yield thing
