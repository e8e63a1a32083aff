"""The command `injection`: what injecting f and A does, as in the paper's Fig. 5."""

from minipnp.app.log import Log
from minipnp.app.models import advice, open_model, say_advice
from minipnp.app.options import (
    Parser,
    add,
    add_inversion_options,
    add_model_options,
    add_options,
    add_pictures,
    add_taking_options,
    pictures_of,
)
from minipnp.app.results import record, save_results, where
from minipnp.app.translate import taken
from minipnp.ddim import check_start
from minipnp.errors import InputError
from minipnp.files.images import find_images, read_image, to_image, to_tensor
from minipnp.files.names import stem
from minipnp.guidance import Inversion
from minipnp.methods.original import Taking
from minipnp.options import PLACE, SEED, TEXT, TEXTS
from minipnp.pipeline import guidance_from_picture
from minipnp.pnp import PnP
from minipnp.see.injection import every, fig_5, injections
from minipnp.see.sheet import sheet

EDIT = ("steps", "timesteps", "tau_f", "tau_A", "scale", "f_layers")


def injection_options(here: Parser) -> None:
    add_pictures(here, "the guidance")
    add(here, "--prompt", "what to make of it", TEXTS)
    add(here, "--negative", "what to keep away from, instead of the empty prompt", TEXT)
    add(here, "--seed", "seed of the random x_T (default: 1)", SEED)
    add_options(here, PnP, EDIT)
    add_taking_options(here, "size", "square")
    add(here, "--out", "a folder, or NAME.png (default: out/PICTURE-injection)", PLACE)
    add_inversion_options(here)
    add_model_options(here)


def injection_command(given: dict, argv: list[str]) -> int:
    """Fig. 5: one translation with f, with A, with both, with neither, and from a random x_T."""
    pictures_of(given)
    log = Log(given.get("quiet", False))
    image = given.get("image")
    with log.warnings_as_notes():
        paths = find_images(image) if image else []
    if len(paths) != 1:
        raise InputError("give one picture, the guidance")
    if not (prompts := given.get("prompt")) or len(prompts) != 1:
        raise InputError("give one --prompt: say what to make of the guidance")
    path = paths[0]
    negative = given.get("negative")
    seed = given.get("seed", 1)
    advised = advice(given)
    values = {**advised.options, **given}
    s = PnP.given(values)
    taking = Taking.given(values)
    inversion = Inversion.given(values)
    read_image(path)
    out = where(given, stem(path) + "-injection", many=False)
    with log.warnings_as_notes():
        check_start(s.levels)
        sd, model = open_model(given, log)
        say_advice(advised, given, log, PnP)
        sd.tokenizer(prompts[0], negative or "")
        picture = taken(path, sd, taking)
        variants = fig_5(s)
        keep = every(s, variants) if inversion.keeps_features(s) else None
        with log.clock("inversion"):
            G = guidance_from_picture(sd, to_tensor(picture), s, inversion, None, log.progress, keep)
        against = None if negative is None else sd.embed(negative)
        noise = sd.noise(*G.x_T.shape[2:], seed)
        with log.clock("translations"):
            steps = injections(sd.unet, G, sd.embed(prompts[0]), sd.embed(""), against, s, noise, variants)
            *_, (_, x_0) = log.progress(steps, s.steps, "translations")
        cells = [("guidance", picture)]
        cells += [(v.label, to_image(x)) for v, x in zip(variants, sd.decode(x_0), strict=True)]
        about = {"picture": path.name, "prompts": prompts, "negative": negative, "random_x_T": seed}
        how = {name: value for name, value in s.record().items() if name != "A_layers"}
        sizes = {"size": taking.size, "square": taking.square, "variants": [v.label for v in variants]}
        settings = about | how | inversion.record_for(s) | sizes | model
        page = sheet(cells[:4], cells[4:])
        print(*save_results(out, {"injection.png": (page, settings)}, record(settings, log, argv)), sep="\n")
    return 0
