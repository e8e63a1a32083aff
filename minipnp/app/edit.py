"""The command `translate --method …`: the other editing methods."""

from pathlib import Path

from PIL.Image import Image

from minipnp.app.log import Log
from minipnp.app.models import open_model, suited
from minipnp.app.results import picture_of, record, save_results, where
from minipnp.errors import InputError
from minipnp.files.images import find_images, fit, read_image, to_image, to_tensor
from minipnp.files.names import slug, stem
from minipnp.methods.editing import METHODS, edit
from minipnp.methods.original import SOURCE_SCALE, Original
from minipnp.methods.settings import INVERSION, inversion_of
from minipnp.model import StableDiffusion
from minipnp.pipeline import check_sides
from minipnp.see.sheet import sheet

GENERAL = (
    "image prompt negative out source source_scale seed size square inversion_steps inversion_at fixed_point "
    "model vae prediction_type ema device dtype low_memory compile quiet"
).split()  # options that every method has; the rest are a method's own, by name


def original_of(
    given: dict, sd: StableDiffusion, log: Log, keep: bool, scale: float = SOURCE_SCALE
) -> tuple[Original, Image, dict]:
    """What is edited, as a picture too, and what the records say of it. keep: see `Original`. scale: the edit's."""
    source, seed, size = given.get("source", ""), given.get("seed", 0), given.get("size") or sd.size
    steps = given.get("steps", 50)
    check_sides(sd, size, size)
    about = {"source": source, "seed": seed}
    if given.get("image") is None:
        scale = given.get("source_scale", scale)  # the edit's own: then the same text gives the same picture again
        o = Original(sd, None, source, seed, (size, size), source_scale=scale, progress=log.progress)
        picture = to_image(sd.decode(o.x_0(steps)))
        return o, picture, about | {"source_scale": scale, "pixels": list(picture.size)}
    path, square, how = Path(given["image"]), given.get("square", False), inversion_of(given)
    picture = fit(read_image(path), size, sd.multiple, square)
    o = Original(sd, sd.encode(to_tensor(picture)), source, seed, inversion=how, progress=log.progress, square=square,
                 keep=keep)  # fmt: skip
    about |= {option: getattr(how, field) for option, field in INVERSION.items()}
    about["inversion_steps"] = how.steps_for(steps)
    return o, picture, about | picture_of(path) | {"square": square, "pixels": list(picture.size)}


def translate_by(name: str, given: dict, argv: list[str]) -> int:
    """`translate` by another method than Plug-and-Play: one picture, one or several prompts."""
    prompts = given.get("prompt")
    own = {key: value for key, value in given.items() if key not in GENERAL}
    if foreign := sorted(own.keys() - METHODS[name].options.keys()):
        flags = ", ".join("--" + key.replace("_", "-").lower() for key in foreign)
        raise InputError(f"{flags}: not an option of --method {name}, leave it out")
    if given.get("image") is None and given.get("source") is None:
        raise InputError(f"--method {name} needs a picture: give --image, or --source to generate one")
    if not prompts:
        raise InputError("no --prompt: say what to make of the picture")
    refuse_unused_by_method(name, given)
    if given.get("image") is not None:
        find_images(given["image"])  # whether it is there
        if Path(given["image"]).is_dir():
            raise InputError(f"--method {name} takes one picture at a time: give a file for --image")
    log, own = Log(given.get("quiet", False)), suited(given) | own
    if "seed" in given and "image" in given and name not in ("sdedit", "pix2pix-zero"):
        log.note("--seed changes nothing here: nothing is drawn at random where a picture is inverted")
    at = f"{stem(Path(given['image'])) if 'image' in given else slug(given['source'])}-{name}"
    out = where(given, at, many=len(prompts) > 1)
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        options = METHODS[name].options | own
        o, picture, about = original_of(given, sd, log, name == "masked-pnp", options["scale"])
        cells, files = [("source", picture)], {}
        settings = about | {"method": name, "negative": given.get("negative"), "options": options}
        for i, prompt in enumerate(prompts, 1):
            with log.clock(f"{name} {i}"):
                made = to_image(edit(name, o, prompt, given.get("negative"), own, log.progress))
            cells.append((prompt, made))
            files[f"{name}-{i}.png" if len(prompts) > 1 else f"{name}.png"] = (
                made,
                settings | {"prompts": [prompt]} | model,
            )
        settings |= {"prompts": prompts} | model
        files["side-by-side.png"] = sheet(cells), settings
        print(*save_results(out, files, record(settings, log, argv)), sep="\n")
    return 0


def refuse_unused_by_method(name: str, given: dict) -> None:
    """Raises InputError for an option that would change nothing."""
    generated, p2z = given.get("image") is None, name == "pix2pix-zero"
    here = "the picture is generated here" if generated else "the picture is an --image here"
    unused = {"square": here} if generated else {"source_scale": here}
    if generated or name == "sdedit" or p2z:
        unused |= dict.fromkeys(INVERSION, here if generated else f"{name} does not invert in that way")
    if p2z and generated:
        unused |= dict.fromkeys(("lambda_ac", "lambda_kl", "gain"), "a generated picture is not inverted")
    elif p2z:
        unused |= {"negative": "the regularised inversion is without guidance"}
    unused |= {"save_direction_to": "--direction is a saved one"} if "direction_file" in given else {}
    for option, other in (("blend_threshold", "blend"), ("blend_start", "blend"), ("threshold", "word")):
        unused |= {} if other in given else {option: f"it is that of --{other}"}
    for option, why in unused.items():
        if option in given:
            flag = option.removesuffix("_to").replace("_", "-")
            raise InputError(f"--{flag} changes nothing, {why}: leave it out")
    if p2z and given.keys() & {"change", "direction_file"} and len(given["prompt"]) > 1:
        raise InputError("with --change or --direction pix2pix-zero makes one picture, whatever the prompt: give one")
    if "save_direction_to" in given and len(given["prompt"]) > 1:
        raise InputError("--save-direction keeps one direction, and each prompt has its own: give one prompt")
