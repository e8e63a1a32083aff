"""The command `invert`: the guidance of a picture, kept in a file for translations to come."""

from pathlib import Path

from minipnp.app.log import Log
from minipnp.app.models import open_model
from minipnp.app.results import check_writable
from minipnp.app.translate import KEPT, SETTLED, guidance_of
from minipnp.errors import InputError
from minipnp.files.guidance_file import save_guidance
from minipnp.files.images import read_image
from minipnp.files.names import stem
from minipnp.methods.settings import Settings
from minipnp.pipeline import check_sides


def invert_command(given: dict, argv: list[str]) -> int:
    """A picture's guidance into a file, for translations to come."""
    log, path = Log(given.get("quiet", False)), given.get("image")
    if not path:
        raise InputError("no --image: give the picture to invert")
    path, features = Path(path), given.get("features", False)
    like = given.get("like", "minipnp")
    if not features and (unused := sorted(given.keys() & set(KEPT) - {"steps"})):
        flag = unused[0].replace("_", "-").lower()
        raise InputError(f"--{flag} decides which --features are kept: give them too, or leave it out")
    s = Settings.like(like, generated=False).with_options(given)
    s.inversion.schedule(s.pnp.steps)
    out = Path(given.get("out") or Path("out") / f"{stem(path)}.safetensors").expanduser()
    if out.suffix != ".safetensors" or out.is_dir():
        raise InputError(f"--out {str(out)!r}: give a name in .safetensors")
    check_writable(out, out.parent)
    if "seed" in given and not s.vae_sampled:
        log.note("--seed changes nothing here: nothing is drawn at random where a picture is inverted")
    read_image(path)
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        check_sides(sd, s.size or sd.size, s.size or sd.size)
        due = s.evaluations(False, 0, False, False, s.pnp if features else None)
        log.expect({phase: n for phase, n in due.items() if phase != "translation"})
        if features and not s.keeps:
            log.note("features kept with --inversion-at next are those of the iterate before: near, not equal")
        if not features and s.inversion.at == "last" and not s.inversion.schedule(s.pnp.steps)[1]:
            log.say("translations from this file are near those of translate --image; with --features they are equal")
        G, picture, made = guidance_of(path, sd, s, log, features)
        options = {name: value for name, value in s.options().items() if name in SETTLED and name != "size"}
        kept = {name: value for name, value in s.options().items() if name in KEPT} if G.features else None
        about = {"guidance": made, "like": like, "options": options, "pixels": list(picture.size), "kept": kept}
        print(save_guidance(out, G, about | model))
    return 0
