"""What the paper claims of Plug-and-Play, tested on the bundled model: tables of differences, pair by pair."""

from collections.abc import Iterable
from statistics import fmean

from minipnp.measure.metrics import COLUMNS
from minipnp.measure.report import Interval, Results, interval
from minipnp.measure.runs import CLOSER, RUNS

HOW = (
    "Every difference is Plug-and-Play's value minus the other's, over the pairs that both have, with the bootstrap's "
    "95 % interval over guidance pictures."
)
LAYOUT = ("iou", "edges")
TEXT = ("probability", "fidelity")
LEFT = ("style_left", "colour_left")
SAME_SHAPE = ("style", "silhouette")  # kinds of pairs whose prompt keeps the object, so that its outline should stay


def difference(found: Results, method: str, name: str, pairs: Iterable[str]) -> Interval | None:
    """Plug-and-Play minus the method, in one column; None: no pair has both."""
    ours, theirs = found["pnp"], found[method]
    both = [p for p in pairs if p in ours and p in theirs and name in ours[p].values and name in theirs[p].values]
    if not both:
        return None
    return interval([(ours[p].guidance, ours[p].values[name] - theirs[p].values[name]) for p in both])


def signed(x: Interval | None) -> str:
    return "" if x is None else f"{x.mean:+.3f} [{x.low:+.3f}, {x.high:+.3f}]"


def differences(found: Results, methods: Iterable[str], names: Iterable[str], pairs: list[str]) -> list[str]:
    """A table with a row for each method and a column for each measure."""
    names = list(names)
    heads = " | ".join(COLUMNS[name].label for name in names)
    lines = [f"| Plug-and-Play minus | {heads} |", "|---|" + "---|" * len(names)]
    for method in methods:
        if found.get(method):
            cells = [signed(difference(found, method, name, pairs)) for name in names]
            lines.append(f"| {RUNS[method].label} | {' | '.join(cells)} |")
    return lines


def verdict(found: Results, method: str, pairs: list[str]) -> str:
    """Whether Plug-and-Play is above or below: in layout, by mask IoU or edges; in text, by either measure of it."""
    said = []
    for what, names in (("layout", LAYOUT), ("text", TEXT)):
        found_there = [difference(found, method, name, pairs) for name in names]
        above = any(x is not None and x.low > 0 for x in found_there)
        below = any(x is not None and x.high < 0 for x in found_there)
        if above and below:
            said.append(f"{what} undecided")
        elif above or below:
            said.append(f"{'above' if above else 'below'} in {what}")
    return ", ".join(said) or "no difference seen"


def mean(found: Results, method: str, name: str, pairs: list[str]) -> float:
    return fmean(found[method][p].values[name] for p in pairs if p in found[method])


def against_others(found: Results, pairs: list[str]) -> list[str]:
    """Every strength of SDEdit, and DDIM with a word swap, beside Plug-and-Play, on these pairs.

    In bold: strengths of about as much text as Plug-and-Play has.
    """
    names = ("iou", "edges", "probability")
    head = [COLUMNS[n].label for n in names]
    lines = [
        f"| | {' | '.join(head)} | text, as a share of Plug-and-Play's | {' | '.join(f'Δ {h}' for h in head)} | "
        "Plug-and-Play is |",
        "|---|" + "---:|" * 4 + "---|" * 4,
    ]
    for method in ("pnp", *(f"sdedit-{strength}" for strength in CLOSER), "ddim"):
        if not found.get(method):
            continue
        share = mean(found, method, "probability", pairs) / mean(found, "pnp", "probability", pairs)
        cells = [f"{mean(found, method, n, pairs):.3f}" for n in names] + [f"{share:.2f}"]
        if method == "pnp":
            cells += ["", "", "", ""]
        else:
            cells += [signed(difference(found, method, n, pairs)) for n in names] + [verdict(found, method, pairs)]
        mark = "**" if method.startswith("sdedit") and 0.9 <= share <= 1 else ""
        lines.append(f"| {mark}{RUNS[method].label}{mark} | {' | '.join(cells)} |")
    return lines


def claims(found: Results, kinds: dict[str, str]) -> str:
    """Markdown. kinds: of each pair, by its name."""
    every = list(kinds)
    same = [p for p in every if kinds[p] in SAME_SHAPE]
    black = [p for p in every if kinds[p] == "silhouette"]
    ablations = ("pnp-without-f", "pnp-without-A", "pnp-without-both", "pnp-f-4", "pnp-random", "ddim")
    more = ("pnp-f-4-8", "pnp-f-4-11")
    return "\n".join([
        "## What f and A do", "",
        f"{len(every)} pairs. {HOW}", "",
        *differences(found, ablations, (*LAYOUT, *TEXT), every), "",
        "## Beside SDEdit and DDIM with a word swap, where the outline should stay", "",
        f"{len(same)} pairs of another style and of silhouettes. In bold: strengths whose text is 0.9 to 1 of "
        "Plug-and-Play's.", "",
        *against_others(found, same), "",
        "## f in more layers keeps more of the layout and leaks appearance (Fig. 5a)", "",
        *differences(found, more, (*LAYOUT, *TEXT, *LEFT), every), "",
        "## A negative prompt helps silhouettes to follow the text (A.1)", "",
        f"{len(black)} silhouettes.", "",
        *differences(found, ("pnp-negative",), (*LAYOUT, *TEXT, *LEFT), black),
    ]) + "\n"  # fmt: skip
