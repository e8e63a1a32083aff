"""The command `compare`: all editing methods on one picture."""

import time
from pathlib import Path

import torch
from PIL.Image import Image
from torch.nn import functional as F

from minipnp.app.edit import original_of
from minipnp.app.log import Log
from minipnp.app.models import open_model, suited
from minipnp.app.results import record, save_results, where
from minipnp.app.table import as_table
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.images import psnr, read_image, to_image, to_tensor
from minipnp.files.names import stem
from minipnp.methods.editing import edit
from minipnp.methods.sdedit import STRENGTHS
from minipnp.see.sheet import sheet

EXAMPLE = {  # of the bundled pictures
    "image": str(hub.WEIGHTS / "bundled" / "examples" / "cat-twemoji.png"),
    "source": "a twemoji icon of a cat on a blue background",
    "prompt": "a twemoji icon of a tiger on a teal background",
    "word": "cat=tiger",
    "blend_threshold": 0.7,  # its cross-attention is flatter than SD-1.5's, for which 0.3 is made
}


def compare_command(given: dict, argv: list[str]) -> int:
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
        sd, model = open_model(given, log)
        o, picture, about = original_of(given, sd, log, keep=True)
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
        print(*save_results(out, files, record(settings, log, argv, table=table.splitlines())), sep="\n")
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
