"""The tables of what was measured, the exact counts of evaluations that a whole translation needs, and the plot."""

from pathlib import Path

from minipnp.guidance import Inversion
from minipnp.methods.plug_and_play import evaluations
from tools.bench.case import EDIT, KINDS
from tools.bench.savings import OFF
from tools.bench.ways import ALL, FOLDED, KEPT, OWN, OWN_COMPILED, SAVINGS, TEXT_ONCE, WITHOUT

AUTHORS_INVERSION, AUTHORS_RECONSTRUCTION = 999, 999  # evaluations, by pnp-diffusers' defaults; the latter is not read


def work() -> dict[str, int]:
    """Evaluations U of the network for a picture's first prompt and for each further one, by the exact counts.

    The authors' pnp.py reads the latents that preprocess.py has left, so a further prompt is an edit there, too.
    """
    first, exact = (
        sum(evaluations(EDIT, how, prompts=1, kept=EDIT).values()) for how in (Inversion(), Inversion(at="current"))
    )
    return {
        "authors, first prompt": AUTHORS_INVERSION + AUTHORS_RECONSTRUCTION + 3 * EDIT.steps,
        "authors, a further prompt": 3 * EDIT.steps,
        "minipnp, first prompt": first,
        "minipnp, first prompt with `--inversion-at current`": exact,
        "minipnp, a further prompt": 2 * EDIT.steps,
    }


def shown(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else shown(seconds)


def whole_ways(size: dict) -> list[str]:
    """The ways that are not there for a saving's sake."""
    return [name for name in size["edit"] if name not in (*OFF, TEXT_ONCE, FOLDED)]


def table(size: dict) -> str:
    edit, lines = size["edit"], []
    evaluations = ", ".join(f"{name} {shown(seconds)}" for name, seconds in size["evaluation"].items())
    lines += [f"{size['pixels']} × {size['pixels']} pixels. One evaluation: {evaluations}.", ""]
    lines += ["| | f and A | f | none | edit of 50 steps | ratio | peak, GB | difference |", "|---|" + "---:|" * 7]
    for name in whole_ways(size):
        steps = " | ".join(shown(size["steps"][name][kind]) for kind in KINDS)
        lines.append(
            f"| {name} | {steps} | {shown(edit[name])} | {edit[OWN] / edit[name]:.2f} | {size['peak_gb'][name]:.2f} "
            f"| {size['difference'][name]:.0e} |"
        )
    lines += [
        "",
        "| saving | edit without it | with it | saved | of the products | difference |",
        "|---|" + "---:|" * 5,
    ]
    for name, without, with_it in SAVINGS:
        if name not in size["changed"]:
            continue
        time, products = (1 - measure[with_it] / measure[without] for measure in (edit, size["tflop"]))
        cells = f"{shown(edit[without])} | {shown(edit[with_it])} | {time:.1%} | {products:.1%}"
        lines.append(f"| {name} | {cells} | {size['changed'][name]:.0e} |")
    written, folded = map(shown, size["decoding"].values())
    lines += ["", f"The VAE's decoder: {written}, with its upsampling folded {folded}."]
    return "\n".join(lines)


def whole(size: dict, counts: dict[str, int]) -> str:
    """A translation from the picture to the latent, from the measured parts and the exact counts."""
    edit, one = size["edit"], size["evaluation"]
    first = (AUTHORS_INVERSION + AUTHORS_RECONSTRUCTION) * one["diffusers"] + edit[OWN]
    theirs = {"first prompt": first, "first prompt with `--inversion-at current`": first, "a further prompt": edit[OWN]}
    lines = ["| a picture's | the authors' way | minipnp | ratio |", "|---|---:|---:|---:|"]
    for prompt, own in theirs.items():
        seconds = (counts[f"minipnp, {prompt}"] - 2 * EDIT.steps) * one["minipnp"] + edit[KEPT]
        lines.append(f"| {prompt} | {minutes(own)} | {minutes(seconds)} | {own / seconds:.3g} |")
    return "\n".join(lines)


def plot(sizes: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(sizes), figsize=(5.6 * len(sizes), 3.4), squeeze=False)
    colours = {OWN: "#b5473c", OWN_COMPILED: "#d08a80", WITHOUT: "#8fa3b8", ALL: "#3a6ea5", KEPT: "#1d3f66"}
    for ax, size in zip(axes[0], sizes, strict=True):
        names = whole_ways(size)
        seconds = [size["edit"][name] for name in names]
        bars = ax.barh(range(len(names)), seconds, color=[colours.get(name, "#0f2038") for name in names])
        ax.set_yticks(range(len(names)), names if ax is axes[0][0] else [""] * len(names))
        ax.invert_yaxis()
        for bar, value in zip(bars, seconds, strict=True):
            label = f" {shown(value)} · {seconds[0] / value:.2f}×"
            ax.text(value, bar.get_y() + bar.get_height() / 2, label, va="center")
        ax.set_xlim(0, max(seconds) * 1.5)
        ax.set_title(f"{size['pixels']} × {size['pixels']} pixels")
        ax.set_xlabel("seconds for an edit of 50 steps")
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
