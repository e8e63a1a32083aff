"""The command `compare`: several methods on one original, a labelled sheet and a table."""

import time
from pathlib import Path

from PIL.Image import Image

from minipnp.advice import Advice
from minipnp.app.log import Log
from minipnp.app.models import open_model, say_advice
from minipnp.app.options import (
    INVERSION,
    TAKING,
    Parser,
    add,
    add_inversion_options,
    add_model_options,
    add_option,
    add_options,
    add_pictures,
    add_taking_options,
    by_method,
    pictures_of,
    words,
)
from minipnp.app.results import picture_of, record, save_results, where
from minipnp.app.table import as_table
from minipnp.app.translate import taken
from minipnp.app.useless import refuse
from minipnp.errors import InputError, NoRoom
from minipnp.files import hub
from minipnp.files.images import psnr, read_image, to_image, to_tensor
from minipnp.files.names import slug, stem
from minipnp.guidance import Inversion
from minipnp.measure.benchmarks import Pair
from minipnp.measure.edges import edge_correlation
from minipnp.measure.runs import COMPARED, RUNS, check_runs, run_on
from minipnp.methods.original import Original, Taking
from minipnp.methods.registry import METHODS
from minipnp.model import StableDiffusion
from minipnp.options import PLACE, TEXT, Stepped
from minipnp.pipeline import check_sides
from minipnp.pnp import PnP
from minipnp.see.sheet import sheet

EXAMPLE = {  # of the bundled pictures
    "image": str(hub.WEIGHTS / "bundled" / "examples" / "cat-twemoji.png"),
    "source": "a twemoji icon of a cat on a blue background",
    "prompt": "a twemoji icon of a tiger on a teal background",
    "word": "cat=tiger",
    "blend_threshold": 0.7,  # its cross-attention is flatter than SD-1.5's, for which 0.3 is made
}
SHARED_SCALE = 7.5  # of an original that is generated for several methods, where the model advises none
USELESS_TO_COMPARE = (  # of what is given, with the example where that is used, and the names of the methods
    ((*INVERSION, "square", "vae_sampled"), lambda a: "image" not in a[0], "the original is generated, not an --image"),
    (("source_scale",), lambda a: "image" in a[0], "the original is an --image here"),
    (
        ("blend_threshold",),
        lambda a: "p2p-blend" not in a[1] or a[0].get("word") is None,
        "it is that of p2p-blend, which needs --word",
    ),
)


def compare_options(here: Parser) -> None:
    here.description += "\n\nWithout a picture and --source: the bundled example."
    add_pictures(here, "the picture to edit")
    add(here, "--prompt", "what to make of it", TEXT)
    add(here, "--source", "what it shows now; without a picture, the text it is generated from", TEXT)
    add(here, "--negative", "what to keep away from, instead of the empty prompt", TEXT)
    add(here, "--word", "the object: horse, or horse=cow for the source's and the prompt's", TEXT)
    add(here, "--methods", f"any of {', '.join(RUNS)} (default: {','.join(COMPARED)})", words(*RUNS))
    add_options(here, Stepped)
    (_, blend_threshold), *_ = by_method()["blend_threshold"]
    add_option(here, blend_threshold)
    add(here, "--out", "a folder, or NAME.png (default: out/PICTURE'S NAME-compare)", PLACE)
    add_taking_options(here, *(name for name in TAKING if name != "both"))
    add_inversion_options(here)
    add_model_options(here)


def compare_command(given: dict, argv: list[str]) -> int:
    pictures_of(given)
    log = Log(given.get("quiet", False))
    asked = given
    given = with_the_example(given, log)
    if not given.get("prompt") or not given.get("source"):
        raise InputError("give --prompt, what to make of the picture, and --source, what it shows now")
    names = tuple(given.get("methods") or COMPARED)
    check_runs(names)
    refuse(USELESS_TO_COMPARE, asked, (given, names))
    if "image" in given:
        read_image(given["image"])
    name = stem(Path(given["image"])) if "image" in given else slug(given["source"])
    out = where(given, f"{name}-compare", many=False)
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        advised = sd.advice
        say_advice(advised, given, log, *{METHODS[RUNS[name].method].settings for name in names})
        o, picture, about = open_shared_original(given, advised, sd, log)
        if given.get("word") is None and {"masked-pnp", "p2p-blend", "masactrl"} & {*names}:
            log.note("without --word masked-pnp is left out, and MasaCtrl is without masks")
        if "negative" in given and any(METHODS[RUNS[name].method].own_inversion for name in names):
            log.note("pix2pix-zero takes no --negative: its regularised inversion is without guidance")
        made = made_by_all(names, given, advised, o, log)
        rows = [
            (label, f"{seconds:.1f}", f"{psnr(image, picture):.1f}", f"{likeness(image, picture):.2f}")
            for label, image, seconds in made
        ]
        round_trip = to_image(o.picture(Stepped.given(given)))
        cells = [("source", picture), ("VAE round trip", round_trip), *((label, image) for label, image, _ in made)]
        chosen = {name: given.get(name) for name in ("negative", "blend_threshold", "word")}
        about |= {"prompts": [given["prompt"]], "methods": list(names)} | Stepped.given(given).record()
        settings = about | chosen | advised.options | model
        table = as_table(("method", "seconds", "PSNR", "edges"), rows)
        for line in table.splitlines():
            log.say(line)
        grid = [cells[i : i + 4] for i in range(0, len(cells), 4)]
        files = {"compare.png": (sheet(*grid), settings)}
        print(*save_results(out, files, record(settings, log, argv, table=table.splitlines())), sep="\n")
    return 0


def made_by_all(
    names: tuple[str, ...], given: dict, advised: Advice, o: Original, log: Log
) -> list[tuple[str, Image, float]]:
    """(label, picture, seconds) of each method. What methods share, such as an inversion, counts for the first."""
    shared = {name: given[name] for name in ("steps", "timesteps", "blend_threshold") if name in given}
    pair = Pair("", "", given["prompt"], source=given["source"], word=given.get("word"), seed=o.seed)
    made = []
    for name in names:
        run = RUNS[name]
        if run.lacks(pair):
            continue
        label = run.label + (f", {pair.word}" if run.word and pair.word else "")
        began = time.perf_counter()
        try:
            image = to_image(run_on(run, o, pair, shared, advised.options, given.get("negative"), log.progress))
        except NoRoom:
            raise
        except InputError as error:
            log.note(f"{label} is left out: {error}")
            continue
        made.append((label, image, time.perf_counter() - began))
    if not made:
        raise InputError("no method could edit this picture: the notes say why")
    return made


def likeness(a: Image, b: Image) -> float:
    return edge_correlation(to_tensor(a), to_tensor(b))


def with_the_example(given: dict, log: Log) -> dict:
    """The options, filled up from the bundled example where neither a picture nor a text for one is given."""
    if "image" in given or ("source" in given and "prompt" in given):
        return given
    if "source" in given or ("word" in given and "prompt" not in given):
        own = "source" if "source" in given else "word"
        raise InputError(f"--{own} is of a picture of yours: give --image too, or leave it out for the example")
    given.setdefault("model", "bundled")
    hub.resolve("bundled")
    given = {name: value for name, value in EXAMPLE.items() if name != "word" or "prompt" not in given} | given
    log.say(f"no --image: the bundled example, {given['image']}")
    return given


def open_shared_original(given: dict, advised: Advice, sd: StableDiffusion, log: Log) -> tuple[Original, Image, dict]:
    """What is edited; its picture; and what the records say of it."""
    taking = Taking.given(given)
    inversion = Inversion.given(given)
    edit = Stepped.given(given)
    size = taking.size or sd.size
    check_sides(sd, size, size)
    if "image" not in given:
        if taking.source_scale is None:
            taking = taking.with_({"source_scale": advised.options.get("scale", SHARED_SCALE)})
        o = Original.from_text(sd, given["source"], taking, log.progress)
        picture = to_image(o.picture(edit))
        return o, picture, {"source": given["source"]} | taking.record() | {"pixels": list(picture.size)}
    path = Path(given["image"])
    picture = taken(path, sd, taking)
    o = Original.from_picture(sd, to_tensor(picture), given["source"], taking, inversion, sd.advised(PnP), log.progress)
    about = {"source": given["source"]} | taking.record() | inversion.record_for(edit) | picture_of(path)
    return o, picture, about | {"pixels": list(picture.size)}
