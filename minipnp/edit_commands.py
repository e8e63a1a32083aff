"""The commands that run the other editing methods: `translate --method …` and `compare`."""

import time
from pathlib import Path

import torch
from PIL.Image import Image
from torch.nn import functional as F

from minipnp import hub
from minipnp.commands import load, sheet, slug, stem, suited, where
from minipnp.editing import METHODS, SOURCE_SCALE, Original, edit
from minipnp.errors import InputError
from minipnp.images import find_images, fit, psnr, read_image, to_image, to_tensor
from minipnp.methods.sdedit import STRENGTHS
from minipnp.model import StableDiffusion
from minipnp.pipeline import check_sides
from minipnp.run import INVERSION, Log, inversion_of, picture_of, record, save

GENERAL = (
    "image prompt negative out source source_scale seed size square inversion_steps inversion_at fixed_point "
    "model vae prediction_type ema device dtype low_memory compile quiet"
).split()  # options that every method has; the rest are a method's own, by name
EXAMPLE = {  # of the bundled pictures
    "image": str(hub.WEIGHTS / "bundled" / "examples" / "cat-twemoji.png"),
    "source": "a twemoji icon of a cat on a blue background",
    "prompt": "a twemoji icon of a tiger on a teal background",
    "word": "cat=tiger",
    "blend_threshold": 0.7,  # its cross-attention is flatter than SD-1.5's, for which 0.3 is made
}


def original(
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
    refuse_unused(name, given)
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
        sd, model = load(given, log)
        options = METHODS[name].options | own
        o, picture, about = original(given, sd, log, name == "masked-pnp", options["scale"])
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
        print(*save(out, files, record(settings, log, argv)), sep="\n")
    return 0


def refuse_unused(name: str, given: dict) -> None:
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


def compare(given: dict, argv: list[str]) -> int:
    """All methods on one picture: a labelled sheet and a table. Without --image, the bundled example."""
    log = Log(given.get("quiet", False))
    if given.get("image") is None:
        if "source" in given or ("word" in given and "prompt" not in given):
            own = "source" if "source" in given else "word"
            raise InputError(f"--{own} is of a picture of yours: give --image too, or leave it out for the example")
        given.setdefault("model", "bundled")
        hub.resolve("bundled")
        given = {k: v for k, v in EXAMPLE.items() if k != "word" or "prompt" not in given} | given
        log.say(f"no --image: the bundled example, {given['image']}")
    if not given.get("prompt") or not given.get("source"):
        raise InputError("give --prompt, what to make of the picture, and --source, what it shows now")
    prompt, word = given["prompt"], given.get("word")
    read_image(given["image"])
    out = where(given, stem(Path(given["image"])) + "-compare", many=False)
    with log.warnings_as_notes():
        sd, model = load(given, log)
        o, picture, about = original(given, sd, log, keep=True)
        round_trip = to_image(sd.decode(o.x_0(50)))
        if word is None:
            log.note("without --word masked-pnp is left out, and MasaCtrl is without masks")
        if "negative" in given:
            log.note("pix2pix-zero takes no --negative: its regularised inversion is without guidance")
        rows, cells, advised = [], [("source", picture), ("VAE round trip", round_trip)], suited(given)
        for name, options, label in runs(word, given.get("blend_threshold")):
            began = time.perf_counter()
            try:
                made = to_image(edit(name, o, prompt, given.get("negative"), advised | options, log.progress))
            except InputError as error:
                log.note(f"{label} is left out: {error}")
                continue
            seconds = time.perf_counter() - began
            rows.append((label, f"{seconds:.1f}", f"{psnr(made, picture):.1f}", f"{edges(made, picture):.2f}"))
            cells.append((label, made))
        if not rows:
            raise InputError("no method could edit this picture: the notes say why")
        chosen = {name: given.get(name) for name in ("negative", "blend_threshold")}
        settings = about | chosen | advised | {"prompts": [prompt], "word": word} | model
        grid = [cells[i : i + 4] for i in range(0, len(cells), 4)]
        table = as_table(("method", "seconds", "PSNR", "edges"), rows)
        for line in table.splitlines():
            log.say(line)
        files = {"compare.png": (sheet(*grid), settings)}
        print(*save(out, files, record(settings, log, argv, table=table.splitlines())), sep="\n")
    return 0


def runs(word: str | None, threshold: float | None = None) -> list[tuple[str, dict, str]]:
    """(method, options, label) of a comparison. What methods share, such as an inversion, counts for the first."""
    masked = [("masked-pnp", {"word": word}, f"Plug-and-Play, mask of {word}")] if word else []
    aimed, mask = ({"word": word}, f", mask of {word}") if word else ({}, "")
    where = {"blend": [word]} | ({"blend_threshold": threshold} if threshold is not None else {})
    blend = [("p2p", where, f"Prompt-to-Prompt, local blend of {word}")] if word else []
    return [
        ("pnp", {}, "Plug-and-Play"),
        *masked,
        *(("sdedit", {"strength": s}, f"SDEdit, strength {s}") for s in STRENGTHS),
        ("ddim", {}, "DDIM + word swap"),
        ("p2p", {}, "Prompt-to-Prompt"),
        *blend,
        ("pix2pix-zero", {}, "pix2pix-zero"),
        ("masactrl", aimed, f"MasaCtrl{mask}"),
    ]


def edges(a: Image, b: Image) -> float:
    """Layout kept: the correlation of the two pictures' edge strength, −1 to 1; 1 for the same edges."""
    x = torch.stack([to_tensor(image)[0].mean(dim=0) for image in (a, b)])[:, None]
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    strength = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T])[:, None]).norm(dim=1)
    return torch.corrcoef(strength.flatten(1))[0, 1].nan_to_num().item()


def as_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
