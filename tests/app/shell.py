"""What the tests of the command line share: pictures, texts, options for two steps; what a run has left."""

import hashlib
import json
import os
from pathlib import Path

from PIL import Image

from minipnp.app.cli import main
from minipnp.files import hub
from minipnp.files.images import read_image

ROOT = Path(__file__).resolve().parents[2]
HORSE = ROOT / "weights/bundled/examples/horse-noto.png"
CAT = ROOT / "weights/bundled/examples/cat-twemoji.png"
MODEL = ["--model=bundled", "--device=cpu", "--quiet"]
QUICK = [*MODEL, "--steps=2"]
COW = "--prompt=a flat icon of a cow on a blue background"
SOURCE, PROMPT = "a twemoji icon of a cat on a blue background", "a twemoji icon of a tiger on a teal background"
SAYS = f"--source={SOURCE}"
# Of each method, the options with which it edits the cat in two steps.
EDITS = {
    "pnp": [],
    "sdedit": [],
    "ddim": [SAYS],
    "p2p": [SAYS, "--blend=cat=tiger"],
    "pix2pix-zero": [SAYS],
    "masactrl": [SAYS, "--word=cat=tiger", "--start-step=0"],
    "masked-pnp": [SAYS, "--word=cat=tiger"],
    "skip-inject": [],
}
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def translate(method, *options, image=CAT, prompt=PROMPT):
    """Edits the cat in two steps. An option stands in the place of the usual one, a direction in that of the prompt."""
    names = {option.partition("=")[0] for option in options} - {"--prompt"}  # of which there may be several
    usual = [f"--method={method}", *([f"--image={image}"] if image else []), *QUICK, *EDITS[method]]
    if not names & {"--change", "--direction"}:
        usual.append(f"--prompt={prompt}")
    kept = [option for option in usual if option.partition("=")[0] not in names]
    return main(["translate", *kept, *options])


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def written(path) -> dict:
    """The settings in a PNG."""
    return json.loads(Image.open(path).text["minipnp"])


def run_of(folder) -> dict:
    return json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))


def pixels(path) -> str:
    """A checksum: of a picture, whatever its file says besides."""
    return hashlib.sha256(read_image(path).tobytes()).hexdigest()


def weights(network, file="diffusion_pytorch_model") -> str:
    return hub.sha256(hub.WEIGHTS / f"bundled/{network}/{file}.safetensors")
