"""The command `correspond`: places of one picture in another, and the share of correct key points of a benchmark."""

from dataclasses import dataclass
from pathlib import Path

import torch

from minipnp.app.log import Log
from minipnp.app.models import open_model
from minipnp.app.options import POINTS, Parser, add, add_model_options, add_options, pictures_of
from minipnp.app.results import record, save_results, where
from minipnp.app.seen import (
    SHOWS,
    USELESS_TO_SEE,
    USUAL_LAYER,
    USUAL_T,
    Looking,
    Request,
    add_looking_options,
    gather,
    one_layer,
    uncropped,
)
from minipnp.app.table import as_table
from minipnp.app.useless import refuse
from minipnp.errors import InputError
from minipnp.files.images import read_image
from minipnp.files.names import slug
from minipnp.options import NAME, NUMBER, PLACE, STEPS, Options, choice, option, whole
from minipnp.pipeline import check_sides
from minipnp.see import collect, figures, match, show, spair
from minipnp.see.sheet import sheet


@dataclass(frozen=True)
class Matching(Options):
    """What of the network is compared; with `pck`, over which pairs."""

    of: str = option("f", "what to compare", choice("f", "q", "k"))
    layer: int | None = option(None, f"decoder layer, 0 to 11 {USUAL_LAYER}", whole(0, 11))
    t: int | None = option(None, f"timestep {USUAL_T}", STEPS)
    split: str = option("test", "with --pck: which folder of annotations", NAME)
    alpha: float = option(spair.ALPHA, "with --pck: correct within this share of the box's longer side", NUMBER)
    limit: int | None = option(None, "with --pck: at most so many pairs, evenly from all", whole(1))


def correspond_options(here: Parser) -> None:
    add_looking_options(here, "A, then B", SHOWS + "; with --pck {category} in it is the pair's")
    add(here, "--points", "places of A, in pixels of its file (default: nine)", POINTS)
    add(here, "--pck", "instead of A and B: a folder of annotated pairs, as SPair-71k", PLACE)
    add_options(here, Matching)
    add_model_options(here)


def correspond_command(given: dict, argv: list[str]) -> int:
    """Where places of A are in B: points and lines, and all of B in the colours of A's places."""
    if "pck" in given:
        return pck(given, argv)
    for name in ("alpha", "split", "limit"):
        if name in given:
            raise InputError(f"--{name} is an option of --pck: leave it out")
    log = Log(given.get("quiet", False))
    job = Request.of(given, log)
    points = given.get("points")
    if len(job.names) != 2:
        raise InputError(f"{len(job.names)} pictures: give two, A and B")
    if points:
        if not job.paths:
            raise InputError("--points are in pixels of a file, and A is generated here: leave them out")
        width, height = read_image(job.paths[0]).size
        for x, y in points:
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
                raise InputError(f"point {x:g},{y:g}: A has pixels 0,0 to {width - 1},{height - 1}")
    out = where(given, "-".join(job.names) + "-correspond", many=False)
    s = Matching.given(given)
    t = s.t or job.how.usual_t
    of = s.of
    layer = one_layer(given, of)
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        A, B = gather(job, sd, log, [t], uncropped)
        f_a, f_b = (collect.features(sd, p.seen, t, of, [layer])[layer] for p in (A, B))
        places = spair.places(torch.tensor(points), width, height) if points else match.centres(3, 3)
        found, cosines = match.nearest(f_a, f_b, places, B.image.height, B.image.width)
        cells_a, cells_b = (tuple(p.seen.x_0.shape[2:]) for p in (A, B))
        origin, _ = match.nearest(f_b, f_a, match.centres(*cells_b), *cells_a)
        named = figures.named(layer, B.seen)
        page = sheet(
            [(f"the most alike {of} of {named}, t = {t}", show.matches(A.image, B.image, places, found))],
            [
                (
                    "each place of B in the colour of the place of A that is most like it",
                    show.matches(
                        show.coded(A.image, match.centres(*cells_a), *cells_a), show.coded(B.image, origin, *cells_b)
                    ),
                )
            ],
        )
        settings = (
            {"pictures": [A.about, B.about]}
            | job.settings
            | {
                "points": points,
                "of": of,
                "layer": str(layer),
                "t": t,
            }
            | model
        )
        matches = [
            {"A": a, "B": b, "cosine": c}
            for a, b, c in zip(places.tolist(), found.tolist(), cosines.tolist(), strict=True)
        ]
        run = record(settings, log, argv, matches=matches)
        print(*save_results(out, {"correspond.png": (page, settings)}, run), sep="\n")
    return 0


def pck(given: dict, argv: list[str]) -> int:
    """The share of correct key points over a folder of annotated pairs."""
    pictures_of(given, many=True)
    for name in ("image", "points", "source"):
        if given.get(name):
            raise InputError(f"--pck has its pictures and points from the folder: leave {name} out")
    if len(prompts := given.get("prompt", [""])) > 1:
        raise InputError("--pck takes one --prompt, in which {category} is the pair's")
    refuse(USELESS_TO_SEE, given, given)
    s = Matching.given(given)
    how = Looking.given(given)
    log = Log(given.get("quiet", False))
    folder = Path(given["pck"])
    alpha = s.alpha
    if not alpha > 0:
        raise InputError(f"--alpha {alpha:g}: give a number above 0")
    split = s.split
    t = s.t or how.usual_t
    of = s.of
    files = spair.pair_files(folder, split, s.limit)
    job = Request([], [], [], how)
    layer = one_layer(given, of)
    collect.check_range([t]) if how.noised else collect.levels([t], how)
    out = where(given, slug(folder.name) + "-pck", many=False)
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        check_sides(sd, how.size or sd.size, how.size or sd.size)

        def look(path: Path, category: str, number: int) -> spair.Looked:
            original = read_image(path)
            image = uncropped(original, how.size or sd.size, sd.multiple)
            seen = job.x_t(sd, image, prompts[0].replace("{category}", category), [t], number, log)
            return spair.Looked(image, original.size, collect.features(sd, seen, t, of, [layer])[layer])

        with log.clock("pairs"):
            scores, skipped, shown = spair.score_pairs(files, folder, look, alpha, log.progress, log.failed)
        rows = spair.pck_table(scores.values())
        for line in as_table(tuple(rows[0]), [tuple(map(spair.in_percent, row.values())) for row in rows]).splitlines():
            log.say(line)
        settings = (
            {"folder": folder.name, "split": split, "pairs": len(files), "alpha": alpha}
            | job.settings
            | {
                "prompt": prompts[0],
                "of": of,
                "layer": str(layer),
                "t": t,
                "size": how.size or sd.size,
            }
            | model
        )
        correct = {name: "".join("01"[ok] for ok in score.correct) for name, score in scores.items()}
        run = record(settings, log, argv, pck=rows, skipped=skipped, correct=correct)
        print(*save_results(out, {"pck.png": (sheet(*shown), settings)}, run), sep="\n")
    if skipped:
        raise InputError(f"{len(skipped)} of {len(files)} pairs could not be used; PCK is that of the others")
    return 0
