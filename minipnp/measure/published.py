"""The published networks that some measures need: from a folder, or from the hub into its cache.

Of the folder's files the SHA-256 goes into the records. What comes from the hub is compared with the SHA-256 that the
hub keeps the file under, what torchvision publishes with the digits of it in the file's name.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.hub_faults import one_line

INSTEAD = "or measure without it: --metrics icons iou need no download (bundled benchmark)"


class Published(NamedTuple):
    """file: its name in a folder of such files. source: a hub id, or the URL of a file; remote: its name there."""

    what: str
    file: str
    source: str
    remote: str


CLIP = Published(
    "CLIP ViT-L/14 of OpenAI (1.7 GB)",
    "clip-vit-l-14.safetensors",
    "timm/vit_large_patch14_clip_224.openai",
    "open_clip_model.safetensors",
)
DINO = Published(
    "DINO ViT-B/8 (0.3 GB)", "dino-vit-b-8.safetensors", "timm/vit_base_patch8_224.dino", "model.safetensors"
)
SQUEEZENET = Published(
    "SqueezeNet 1.1 (5 MB)",
    "squeezenet1_1-b8a52dc0.pth",
    "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    "squeezenet1_1-b8a52dc0.pth",
)


def find_published(network: Published, folder: Path | None = None) -> Path:
    """The file of a network's weights. folder: where it is looked for, under its name there; nothing is fetched then.

    Raises InputError, which says what is missing: not in the folder, no network, not the file that was published.
    """
    if folder is not None:
        if not (folder / network.file).is_file():
            where = f"{network.remote} of {network.source}" if "://" not in network.source else network.source
            raise InputError(f"{folder / network.file}: not there; put {network.what} there ({where}), {INSTEAD}")
        return folder / network.file
    if "://" in network.source:
        return _from_url(network)
    import huggingface_hub as hf

    instead = f"give --measures FOLDER with {network.file} in it, {INSTEAD}"
    with one_line(f"{network.what}, {network.source}", instead):
        try:
            path = Path(hf.hf_hub_download(network.source, network.remote, local_files_only=True))
        except hf.errors.LocalEntryNotFoundError:
            found = hf.get_hf_file_metadata(hf.hf_hub_url(network.source, network.remote), timeout=hub.SECONDS)
            path = Path(hf.hf_hub_download(network.source, network.remote))
            _check(path, found.etag or "")
    _check(path, Path(os.path.realpath(path)).name)  # the cache has it under that name, where it has symbolic links
    return path


def _check(path: Path, digest: str) -> None:
    if re.fullmatch("[0-9a-f]{64}", digest) and hub.sha256(path) != digest:
        raise InputError(f"{path}: damaged, its SHA-256 is not {digest}: remove it and run this again")


def _from_url(network: Published) -> Path:
    """Into torch.hub's cache, which is where torchvision looks for it too."""
    import torch

    place = Path(torch.hub.get_dir()) / "checkpoints" / network.file
    digest = network.file.rpartition("-")[2].removesuffix(".pth")
    try:
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
                raise OSError("HF_HUB_OFFLINE is set")
            torch.hub.download_url_to_file(network.source, str(place), hash_prefix=digest, progress=False)
        if not hub.sha256(place).startswith(digest):
            raise InputError(f"{place}: damaged, its SHA-256 does not begin with {digest}: remove it, run this again")
    except (OSError, RuntimeError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{network.what}: cannot be fetched from {network.source} ({cause}); connect and run this again, give "
            f"--measures FOLDER with {network.file} in it, {INSTEAD}"
        ) from None
    return place
