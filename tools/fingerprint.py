"""SHA-256 of what forty commands make, so that a change of the code can be shown to change no result.

    python -m tools.fingerprint record before.json      # on the commit before the change
    python -m tools.fingerprint check before.json       # on the commit after it, on the same machine

All methods, generated and inverted guidance, a folder, guidance files, `--like`, the figures and an evaluation of two
pairs, on the bundled model, in one process with one thread; ten minutes. Hashed are values and not files: the final
latents, the pixels of the pictures, the tensors of safetensors files and the measurements, for the files also hold the
settings as text. Another processor or another PyTorch rounds otherwise, so a record serves on the machine that made it.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import runpy
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from minipnp.vae import VAE

EXAMPLES = Path(__file__).parent.parent / "weights" / "bundled" / "examples"
CAT, HORSE = EXAMPLES / "cat-twemoji.png", EXAMPLES / "horse-noto.png"
COW = "--prompt 'a flat icon of a cow on a blue background'"
DOG = "--prompt 'a glossy icon of a dog on a green background'"
IS_CAT = "--source 'a twemoji icon of a cat on a blue background'"
TIGER = "'a twemoji icon of a tiger on a teal background'"
OF_CAT = f"--image {CAT} {IS_CAT} --prompt {TIGER} --steps 10"
NEGATIVE = "--negative 'a blob' --alpha 0.5 --alpha-schedule linear"
SAVED = "cat.safetensors"  # an edit direction
GENERATED = f"--source 'a noto icon of a cat on a red background' --seed 3 --prompt {TIGER} --steps 10"

COMMANDS = {  # by name; {out}: the folder of what they make, {made}: of what the commands before them made
    "example": "translate --steps 10",
    "default-steps": f"translate --image {HORSE} {COW}",
    "two-prompts": f"translate --image {HORSE} {COW} {DOG} {NEGATIVE} --steps 10",
    "folder": f"translate --image {{pictures}} {DOG} --steps 5",
    "square": f"translate --image {{wide}} {DOG} --steps 5 --square",
    "wide": f"translate --image {{wide}} {DOG} --steps 5",
    "generated": f"translate {GENERATED}",
    "generated-two": f"translate {GENERATED} {COW} --source-scale 5",
    "generated-like-plug-and-play": f"translate {GENERATED} --like plug-and-play",
    "like-pnp-diffusers": f"translate --image {HORSE} {COW} --like pnp-diffusers",
    "like-plug-and-play": f"translate --image {HORSE} {COW} --like plug-and-play --seed 1",
    "current": f"translate --image {HORSE} {COW} --inversion-at current --fixed-point 0 --steps 10",
    "next": f"translate --image {HORSE} {COW} --inversion-at next --fixed-point 2 --steps 10 --reconstruct",
    "resampled": f"translate --image {HORSE} {COW} --inversion-steps 20 --steps 15 --resample 30",
    "layers": f"translate --image {HORSE} {COW} --f-layers 4-8 --a-layers 3,5,7 --tau-f 0.5 --tau-a 1 --steps 10",
    "random-start": f"translate --image {HORSE} {COW} --random-start 5 --steps 10",
    "low-memory": f"translate --image {HORSE} {COW} --low-memory --steps 10",
    "bfloat16": f"translate --image {HORSE} {COW} --dtype bfloat16 --steps 5",
    "invert": f"invert --image {HORSE} --steps 10 --out {{out}}/horse.safetensors",
    "from-file": f"translate --guidance {{made}}/invert/horse.safetensors {COW} {DOG} --steps 10",
    "from-file-fewer-steps": f"translate --guidance {{made}}/invert/horse.safetensors {COW} --steps 5 --reconstruct",
    "invert-features": f"invert --image {HORSE} --steps 10 --features --f-layers 4,7 --out {{out}}/horse.safetensors",
    "from-features": f"translate --guidance {{made}}/invert-features/horse.safetensors {COW} --steps 10 --f-layers 4,7",
    "sdedit": f"translate --method sdedit --image {CAT} --prompt {TIGER} --steps 10 --strength 0.6 --seed 2",
    "sdedit-generated": f"translate --method sdedit {GENERATED}",
    "ddim": f"translate --method ddim {OF_CAT}",
    "p2p": f"translate --method p2p {OF_CAT} --weight tiger=2 --blend cat=tiger --blend-threshold 0.7",
    "p2p-phrase": f"translate --method p2p {OF_CAT} --align phrase --as-published --share teal=0.3 --cross-replace 0.6",
    "p2p-generated": f"translate --method p2p {GENERATED} --self-replace 0.6 --self-side 0.5",
    "pix2pix-zero": f"translate --method pix2pix-zero {OF_CAT} --change cat=tiger --seed 4",
    "direction": f"translate --method pix2pix-zero {OF_CAT} --as-published --save-direction {{out}}/{SAVED}",
    "from-direction": f"translate --method pix2pix-zero {GENERATED} --direction {{made}}/direction/{SAVED}",
    "masactrl": f"translate --method masactrl {OF_CAT} --word cat=tiger --start-step 2",
    "masked-pnp": f"translate --method masked-pnp {OF_CAT} --word cat=tiger",
    "masked-pnp-mask": f"translate --method masked-pnp --image {CAT} --prompt {TIGER} --steps 10 --mask {{mask}}",
    "compare": f"compare --image {CAT} {IS_CAT} --prompt {TIGER} --word cat=tiger",
    "sample": f"sample {COW} {DOG} --steps 20 --seed 7",
    "features": f"features {CAT} {HORSE} --of f,q,k,A --layers 4,7 --raw",
    "features-times": f"features {CAT} --of f,words --t 981,541,141 --prompt 'a twemoji icon of a cat' --raw",
    "features-noised": f"features {CAT} --noised --seed 3 --t 500 --raw",
    "features-generated": "features --source 'a noto icon of a cat' --steps 20 --t 551 --smooth",
    "correspond": f"correspond {CAT} {HORSE} --points '100,100 200,150'",
    "segment": f"segment {CAT} {HORSE} --parts 3",
    "injection": f"injection {HORSE} {COW} --steps 10",
    "evaluate": "evaluate --limit 2 --steps 10",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, metavar="NAME", help="these commands, not all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory(prefix="minipnp-fingerprint-") as folder:
        places = prepare_pictures(Path(folder))
        for name in args.only or COMMANDS:
            found[name] = fingerprint(name, Path(folder), places)
            print(f"{name}: {len(found[name]['latents'])} latents, {len(found[name]['values'])} values", flush=True)
    if args.what == "record":
        about = {"machine": f"{platform.processor() or platform.machine()}, {cpu_model()}", "torch": torch.__version__}
        args.file.write_text(json.dumps(about | {"commands": found}, indent=1) + "\n")
        return 0
    known = json.loads(args.file.read_text())["commands"]
    differ = [name for name in found if found[name] != known.get(name)]
    for name in differ:
        before = known.get(name, {"latents": [], "values": {}})
        lost = [x for x in before["latents"] if x not in found[name]["latents"]]
        latents = f"{len(lost)} LATENTS DIFFER" if lost else "all its latents are made"
        # By what a file holds, whatever its name is.
        new = [key for key, value in found[name]["values"].items() if value not in before["values"].values()]
        gone = [key for key, value in before["values"].items() if value not in found[name]["values"].values()]
        print(f"{name}: {latents}; new: {', '.join(new) or 'nothing'}; gone: {', '.join(gone) or 'nothing'}")
    print(f"{len(found) - len(differ)} of {len(found)} commands make what they made")
    return 1 if differ else 0


def cpu_model() -> str:
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return "unknown processor"


def prepare_pictures(folder: Path) -> dict[str, Path]:
    """A folder of two pictures, a picture that is not square, and a mask."""
    pictures, wide, mask = folder / "pictures", folder / "wide.png", folder / "mask.png"
    pictures.mkdir()
    for path in (CAT, HORSE):
        (pictures / path.name).write_bytes(path.read_bytes())
    Image.open(HORSE).convert("RGB").resize((300, 200)).save(wide)
    white = np.zeros((256, 256), np.uint8)
    white[64:192, 64:192] = 255
    Image.fromarray(white).resize(Image.open(CAT).size).save(mask)
    return {"pictures": pictures, "wide": wide, "mask": mask}


def fingerprint(name: str, folder: Path, places: dict[str, Path]) -> dict:
    """Runs one command → its exit code, the hashes of the latents it decodes, and those of what it leaves behind."""
    out = folder / "made" / name
    out.mkdir(parents=True)
    argv = shlex.split(COMMANDS[name].format(out=out, made=folder / "made", **places))
    if argv[0] != "invert":
        argv += ["--out", str(out / "result")]
    printed, latents = StringIO(), []
    with patch.object(sys, "argv", ["minipnp", *argv]), redirect_stdout(printed), redirect_stderr(printed):
        with decoded(latents):
            try:
                runpy.run_module("minipnp", run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code
    if code:
        print(printed.getvalue(), file=sys.stderr)
    return {"exit": code, "latents": latents, "values": dict(sorted(values(out)))}


@contextmanager
def decoded(latents: list[str]) -> Iterator[None]:
    """While it lasts, the hash of each latent that the VAE decodes is appended to `latents`."""
    decode = VAE.decode

    def recorded(vae: VAE, x0: torch.Tensor) -> torch.Tensor:
        latents.append(digest(x0))
        return decode(vae, x0)

    with patch.object(VAE, "decode", recorded):
        yield


def values(out: Path) -> Iterator[tuple[str, str]]:
    """(name, hash) of what is in the files under `out`."""
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".png":
            with Image.open(path) as picture:
                yield name, digest(torch.from_numpy(np.array(picture.convert("RGB"))))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    yield f"{name}:{key}", digest(file.get_tensor(key))
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                record = json.loads(line)
                yield f"{record['pair']}, {record['method']}", json.dumps(record.get("values"))


def digest(x: torch.Tensor) -> str:
    x = x.detach().cpu().contiguous()
    return hashlib.sha256(f"{x.dtype}{list(x.shape)}".encode() + x.view(torch.uint8).numpy().tobytes()).hexdigest()[:24]


if __name__ == "__main__":
    sys.exit(main())
