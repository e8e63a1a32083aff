"""Where weights come from: a path, a short name, a hub id; and the download of SD-1.5 with its known checksums.

huggingface_hub is imported where it is used: the import takes longer than everything else here.
"""

import os
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minipnp.errors import InputError
from minipnp.files.checksums import sha256
from minipnp.files.hub_faults import one_line
from minipnp.files.tensors import PICKLES

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"


LICENCE = """Licence: CreativeML Open RAIL-M, https://huggingface.co/spaces/CompVis/stable-diffusion-license
  Free use, also commercial, within its Attachment A: nothing unlawful, nothing that harms or exploits people (minors
  above all), no harassment, discrimination or harmful disinformation, no medical advice, no use in law enforcement.
  Whoever passes the weights on, changed or not, passes on the licence and these limits with them."""


SECONDS = 10  # to wait for an answer of the hub, without retries


STEMS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


CONFIGS = {  # of SD-1.5, as the files below: name: (bytes, SHA-256)
    "unet/config.json": (743, "78f474de6bab3d893868f37be97b636ae65c0df3073ed3256ca458ff599b5f96"),
    "vae/config.json": (547, "786a7d21647ddea6a04b9675c03d3cb45e90a2f3c6da5fbda2c54ade040036de"),
    "text_encoder/config.json": (617, "845df614cb9327ae7bbea027316246fae917827407da6df13572e41b5f93b4cc"),
}


SETTINGS = (  # what decides on a model's pictures, beside its weights; the scheduler's says what the UNet predicts
    *CONFIGS,
    "scheduler/scheduler_config.json",
    "tokenizer/added_tokens.json",
    "tokenizer/tokenizer.json",
)


SAFETENSORS = {
    "fp16": {
        f"{STEMS[0]}.fp16.safetensors": (
            1719125304,
            "c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21",
        ),
        f"{STEMS[1]}.fp16.safetensors": (167335342, "4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c"),
        f"{STEMS[2]}.fp16.safetensors": (246144864, "77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e"),
    },
    "fp32": {
        f"{STEMS[0]}.safetensors": (3438167540, "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"),
        f"{STEMS[1]}.safetensors": (334643276, "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"),
        f"{STEMS[2]}.safetensors": (492265874, "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334"),
    },
}


def fetch(
    folder: Path = WEIGHTS / "sd15", dtype: str = "fp16", repo: str = SD15, say: Callable[[str], None] = print
) -> Path:
    """Download Stable Diffusion 1.5 in component layout into `folder`; what is there and right is not fetched again.

    dtype: "fp16" (2.1 GB) or "fp32" (4.3 GB). repo: a hub id with the same files, should the usual one disappear.
    Size and licence are said first. A file comes into its place only if its SHA-256 is the published one; a download
    that broke off goes on where it stopped. Raises InputError: no network, no room, not the published file.
    """
    if dtype not in SAFETENSORS:
        raise InputError(f"no weights of dtype {dtype!r}: give fp16 or fp32")
    files = SAFETENSORS[dtype] | CONFIGS
    missing = [name for name in files if not (folder / name).exists()]
    for name in files.keys() - missing:
        _check(folder / name, *files[name], "move it away and run this again")
    if not missing:
        say(f"Stable Diffusion 1.5 ({dtype}) is in {folder}, its checksums are right: nothing to fetch")
        return folder

    total = sum(files[name][0] for name in missing)
    parts = {name: folder / f"{name}.part" for name in missing}
    say(f"Stable Diffusion 1.5 ({dtype}): {total / 1e9:.2f} GB from {repo} into {folder}\n{LICENCE}")
    disk = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    room = shutil.disk_usage(disk).free + sum(part.stat().st_size for part in parts.values() if part.exists())
    if room < total:
        raise InputError(f"{folder}: {total / 1e9:.2f} GB needed, but its disk has {room / 1e9:.2f} GB; make room")
    with one_line(repo, f"put its {', '.join(missing)} into {folder} by hand; the bundled model needs no download"):
        for name, part in parts.items():
            _download(repo, name, part, *files[name])
            try:
                _check(part, *files[name], "it is not kept; run this again, and see what HF_ENDPOINT points to")
            except InputError:
                part.unlink()
                raise
            os.replace(part, folder / name)
    say(f"Stable Diffusion 1.5 ({dtype}) is in {folder}, its checksums are right")
    return folder


def _download(repo: str, name: str, part: Path, size: int, digest: str) -> None:
    """One file into `part`: a copy of what the hub's cache has, or what `part` lacks, so that a broken run goes on.

    (The hub's own download of a file starts anew in every run.)
    """
    import huggingface_hub as hf
    from huggingface_hub.file_download import http_get

    there = part.stat().st_size if part.exists() else 0
    if there == size:  # it broke off before it came into its place
        return
    if there > size:  # no part of this file
        part.unlink()
    revision = REVISION if repo == SD15 else None
    cached = hf.try_to_load_from_cache(repo, name, revision=revision)
    if isinstance(cached, str) and sha256(Path(cached)) == digest:
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, part)
        return
    url = hf.hf_hub_url(repo, name, revision=revision)
    if (found := _look(url)).size not in (None, size):
        raise OSError(f"{name} has {found.size} bytes there, expected {size}")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        http_get(url, file, resume_size=file.tell(), headers=hf.utils.build_hf_headers(), expected_size=size)


def is_model(folder: Path) -> bool:
    """Whether each of the three networks has weights in this folder (component layout)."""
    return not _without_weights(folder)


def resolve(model: str, weights: Path = WEIGHTS, half: bool = False) -> Path:
    """The file or folder that MODEL means. A hub id is fetched into the hub's own cache once, then taken from there.

    model: "bundled" or "sd15" (folders of `weights`), a path, or a hub id "owner/name" of a model in component layout.
    half: of a hub id fetch the fp16 files, where it has any. Raises InputError if there is no such model.
    """
    if model in ("bundled", "sd15"):
        if not is_model(weights / model):
            fix = "run `make weights`" if model == "sd15" else "it is part of the repository: `git checkout weights`"
            raise InputError(f"{weights / model}: not there, or not whole; {fix}")
        return weights / model
    path = Path(os.path.expanduser(model))
    hub_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model)
    if hub_id and path.is_dir() and not any((*path.glob("*.safetensors"), *path.glob("*/*.*"))):
        raise InputError(
            f"{model}: taken for the folder here, which has no model in it; for the hub's model of that name "
            "rename the folder or run this in another one"
        )
    if model and (path.exists() or path.is_symlink()):
        return path
    meant_as_path = path.suffix in (".safetensors", *PICKLES) or path.parent.is_dir()
    if meant_as_path or not hub_id:
        raise InputError(
            f"no model {model!r}: give a file or folder that exists, a hub id like {SD15}, sd15 or bundled"
        )
    return _snapshot(model, half)


def _without_weights(folder: Path) -> list[str]:
    def there(stem: str) -> bool:  # a link of the hub's cache may lead nowhere
        return any(file.exists() for file in (folder / stem).parent.glob("*.safetensors"))

    return [stem for stem in STEMS if not there(stem)]


def _look(url: str):
    """What the hub says of a file, at once: its own functions try for long where there is no network."""
    import huggingface_hub as hf

    found = hf.get_hf_file_metadata(url, timeout=SECONDS)
    if found.commit_hash is None or found.etag is None:
        raise hf.errors.FileMetadataError(url)
    return found


def _snapshot(repo: str, half: bool) -> Path:
    import huggingface_hub as hf

    def get(names: list[str]) -> Path:
        return Path(hf.snapshot_download(repo, allow_patterns=[*names, *SETTINGS]))

    first, second = (".fp16", "") if half else ("", ".fp16")
    instead = f"give a file or folder that exists (there is no {repo} here); the bundled model needs no download"
    with one_line(repo, instead):
        try:
            folder = Path(hf.snapshot_download(repo, allow_patterns=[], local_files_only=True))
        except hf.errors.LocalEntryNotFoundError:
            folder = None
        if folder is None or not is_model(folder):
            _look(hf.hf_hub_url(repo, "unet/config.json"))
            folder = get([f"{stem}{first}.safetensors" for stem in STEMS])
            if still := _without_weights(folder):
                folder = get([f"{stem}{second}.safetensors" for stem in still])
    if still := _without_weights(folder):
        raise InputError(f"{repo}: it has no {still[0]}.safetensors; download a .safetensors of this model by hand")
    _complete(repo, folder)
    return folder


def _complete(repo: str, folder: Path) -> None:
    """Fetches what a snapshot in the hub's cache lacks of the settings: other programs load networks one by one.

    What the model does not have is remembered there. A warning says what is not known, where the hub does not answer.
    """
    import huggingface_hub as hf

    def unknown() -> list[str]:
        return [name for name in SETTINGS if hf.try_to_load_from_cache(repo, name, revision=folder.name) is None]

    try:
        with one_line(repo, "go on without"):
            for name in (missing := unknown())[:1]:
                with suppress(hf.errors.RemoteEntryNotFoundError):
                    _look(hf.hf_hub_url(repo, name, revision=folder.name))
            for name in missing:
                with suppress(hf.errors.RemoteEntryNotFoundError):
                    hf.hf_hub_download(repo, name, revision=folder.name)
    except InputError as error:
        warnings.warn(
            f"{error}: the cache lacks {', '.join(unknown())}, and where they are not, the model is taken for one like "
            "Stable Diffusion 1.5, which predicts noise (if it predicts v give --prediction-type v)",
            stacklevel=4,
        )


def _check(path: Path, size: int, digest: str, fix: str) -> None:
    if path.stat().st_size != size or sha256(path) != digest:
        raise InputError(f"{path}: not the published file (SHA-256 {sha256(path)}, expected {digest}); {fix}")
