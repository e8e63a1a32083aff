"""A safetensors file: its names, shapes and tensors; or one line that says what the file is instead."""

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minipnp.errors import InputError

# ---------------------------------------------------------------------------------------------------------------------
# Files.
PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # what files are called that are, most of them, pickles


_OTHER_FORMATS = {  # how a file begins: what it is
    rb"version https://git-lfs": "a git-lfs pointer, not the weights; run `git lfs pull`, or download the file itself",
    rb"\s*<": "a web page saved as weights; download the file itself",
    rb"PK\x03\x04|\x80[\x02-\x05]": "a pickle under another name; get the .safetensors of this model",
    rb"GGUF": "a GGUF file, which is not supported; get the .safetensors of this model",
    rb"$": "an empty file; download it again",
}


_FOREIGN = {  # the name and shape of one of its tensors: what it is
    r"(^|[._])lora[._]|^lycoris_|hada_w1|lokr_w1": "a LoRA, which changes a model but is none",
    r"^control_model\.|^controlnet_": "a ControlNet",
    r"^emb_params\b|^string_to_param\b": "a textual inversion",
    r"^conditioner\.embedders\.|(^|\.)label_emb\.|^add_embedding\.": "SDXL",
    r"^cond_stage_model\.roberta\.": "AltDiffusion",
    r"^(model\.diffusion_model\.)?(joint|double|(single_)?transformer)_blocks\.": "a transformer (SD 3, Flux …)",
    r"^cond_stage_model\.model\.": "Stable Diffusion 2.x",
    r"(attn2\.?to_k\.?|embeddings\.token_embedding\.)weight \[\d+, 1024\]": "Stable Diffusion 2.x",
    r"(^conv_in|input_blocks\.?0\.?0)\.?weight \[\d+, 9,": "an inpainting model (9 input channels)",
    r"(^conv_in|input_blocks\.?0\.?0)\.?weight \[\d+, 8,": "a model for instructions or views (8 input channels)",
}


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or 'the weights'}: cannot be read ({error.strerror or error})") from None


class TensorFile:
    """A safetensors file: names and shapes at once, tensors when asked for.

    Raises InputError, which says what the file is, unless it is whole and may hold a network of SD-1.x.
    """

    @_readable()
    def __init__(self, path: Path):
        self.path = path
        self.header, self.metadata = _read_header(path)
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise InputError(f"{path}: damaged ({error}); download it again") from None
        signs = [f"{name} {entry['shape']}" for name, entry in self.header.items()]
        for pattern, kind in _FOREIGN.items():
            if any(re.search(pattern, sign) for sign in signs):
                raise InputError(f"{path}: this is {kind}; give an ordinary model of Stable Diffusion 1.x")
        said = self.metadata.get("modelspec.architecture")
        if said and not re.match(r"(stable[-_ ]?diffusion|sd)[-_ ]?v?1(?!\d)", str(said), re.IGNORECASE):
            raise InputError(
                f"{path}: its metadata say that it is of {said!r} (modelspec.architecture); give a file of Stable "
                "Diffusion 1.x"
            )

    def names(self) -> set[str]:
        return set(self.header)

    def tensor(self, name: str) -> Tensor:
        """Memory-mapped, not to be written to; its address may be no multiple of its element size."""
        return self._file.get_tensor(name)


@_readable()
def is_safetensors(path: Path) -> bool:
    """By its content: downloads have any name."""
    with path.open("rb") as file:
        return _begins_a_header(file.read(9))


def _begins_a_header(head: bytes) -> bool:
    return head[8:9] == b"{"


def _read_header(path: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """{name: {"dtype", "shape", "data_offsets"}} and the metadata: JSON, between 8 bytes of its length and the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(100)
        if not _begins_a_header(head):
            if path.suffix in PICKLES:
                raise InputError(
                    f"{path}: a pickle, which can run any program when it is read; get the .safetensors instead"
                )
            kinds = (kind for start, kind in _OTHER_FORMATS.items() if re.match(start, head))
            raise InputError(f"{path}: {next(kinds, 'no safetensors file; get the .safetensors of this model')}")
        (length,) = struct.unpack("<Q", head[:8])
        file.seek(8)
        header = file.read(min(length, 100_000_000))  # no header is longer
    end = 8 + length
    try:
        if size >= end:
            tensors = json.loads(header)
            metadata = tensors.pop("__metadata__", None) or {}
            end += max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: its header is damaged; download it again") from None
    if size < end:
        raise InputError(f"{path}: cut short: {size} bytes of at least {end}; download it again")
    return tensors, metadata
