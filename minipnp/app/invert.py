"""The command `invert`: the guidance of a picture, kept in a file for translations to come."""

from pathlib import Path

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
    flag_of,
    pictures_of,
)
from minipnp.app.presets import PRESETS, preset
from minipnp.app.results import check_writable, picture_of
from minipnp.app.translate import taken
from minipnp.errors import InputError
from minipnp.files.guidance_file import save_guidance
from minipnp.files.images import read_image, to_tensor
from minipnp.files.names import stem
from minipnp.guidance import Inversion
from minipnp.methods.original import Taking
from minipnp.methods.plug_and_play import evaluations
from minipnp.options import PLACE, SWITCH, choice
from minipnp.pipeline import check_sides, guidance_from_picture
from minipnp.pnp import PnP

# What decides which features are kept.
KEPT = ("steps", "timesteps", "tau_f", "tau_A", "f_layers", "A_layers", "inclusive")
TAKEN = ("square", "seed", "vae_sampled")  # what of `Taking` an inverted picture has settled, but for its size


def invert_options(here: Parser) -> None:
    add_pictures(here, "the picture")
    add(here, "--out", "a name in .safetensors (default: out/PICTURE'S NAME.safetensors)", PLACE)
    add(here, "--features", "keep features too: larger, and the edit needs no passes for them", SWITCH)
    add_taking_options(here, "size", *TAKEN)
    add(here, "--like", "take the defaults of this codebase; the last two are the authors' own", choice(*PRESETS))
    add_options(here.add_argument_group("the translation to come: what is kept for it"), PnP, KEPT)
    add_inversion_options(here)
    add_model_options(here)


def invert_command(given: dict, argv: list[str]) -> int:
    pictures_of(given)
    log = Log(given.get("quiet", False))
    if not given.get("image"):
        raise InputError("no --image: give the picture to invert")
    path = Path(given["image"])
    features = given.get("features", False)
    like = given.get("like", "minipnp")
    if not features and (unused := sorted(given.keys() & {*KEPT} - {"steps", "timesteps"})):
        flag = flag_of(unused[0])
        raise InputError(f"{flag} decides which --features are kept: give them too, or leave it out")
    advised = advice(given, like)
    values = {**preset(like, generated=False), **advised.options, **given}
    s = PnP.given(values)
    taking = Taking.given(values)
    inversion = Inversion.given(values)
    resampled = bool(inversion.schedule(s)[1])
    out = Path(given.get("out") or Path("out") / f"{stem(path)}.safetensors")
    if out.suffix != ".safetensors" or out.is_dir():
        raise InputError(f"--out {str(out)!r}: give a name in .safetensors")
    check_writable(out, out.parent)
    if "seed" in given and not taking.vae_sampled:
        log.note("--seed changes nothing here: nothing is drawn at random where a picture is inverted")
    read_image(path)
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        if features:
            say_advice(advised, given, log, PnP)
        size = taking.size or sd.size
        check_sides(sd, size, size)
        due = evaluations(s, inversion, prompts=0, kept=s if features else None)
        log.expect({phase: n for phase, n in due.items() if phase != "translation"})
        if features and not inversion.keeps_features(s):
            log.note("features kept with --inversion-at next are those of the iterate before: near, not equal")
        if not features and inversion.at == "last" and not resampled:
            log.say("translations from this file are near those of translate --image; with --features they are equal")
        picture = taken(path, sd, taking)
        with log.clock("inversion"):
            vae_seed = taking.seed if taking.vae_sampled else None
            keep = s if features else None
            G = guidance_from_picture(sd, to_tensor(picture), s, inversion, vae_seed, log.progress, keep)
        options = {"steps": s.steps, "timesteps": s.spacing} | {name: taking.record()[name] for name in TAKEN}
        options |= inversion.record_for(s)
        kept = {name: value for name, value in s.record().items() if name in KEPT} if G.features else None
        about = {"guidance": picture_of(path), "like": like, "options": options, "pixels": list(picture.size)}
        print(save_guidance(out, G, about | {"kept": kept} | model))
    return 0
