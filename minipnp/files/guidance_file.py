"""A guidance as one safetensors file: `minipnp invert` makes it, `translate --guidance` starts from it.

Tensors: `x_0`, `x_T`, `texts`, `x.981` … (latents by level), and where features were kept, `features.981.f.decoder.4` …
Its metadata hold, as JSON, what made it: weights, picture, size, schedule.
"""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minipnp.errors import InputError, cannot_write
from minipnp.files.atomic import atomic
from minipnp.guidance import Guidance
from minipnp.machine.kept import flat, unflat
from minipnp.pnp import PnP
from minipnp.slots import Features
from minipnp.weights import finite

FORMAT = "minipnp guidance 1"


DECISIVE = ("weights_sha256", "prediction", "ema", "sizes_sha256")  # what of a model decides on a guidance


MADE = {"like", "options", "guidance", "kept", "dtype", *DECISIVE}


def save_guidance(path: Path, G: Guidance, made: dict) -> Path:
    """made: what made it, as JSON can hold it. The file is whole, or not there. Raises InputError, for NaN in it too.

    → its place: where another guidance or something else has that one, the next free name, horse-2 after horse.
    """
    made = json.loads(json.dumps(made))
    names = (path if n == 1 else path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(1))
    path = next(name for name in names if not os.path.lexists(name) or _made(name) == made)
    tensors = {"x_0": G.x_0, "x_T": G.x_T, "texts": G.texts} | {f"x.{t}": x for t, x in G.latents.items()}
    tensors = {name: _on_cpu(x) for name, x in tensors.items()}
    for t, features in G.features.items():  # one level at a time: the device may not hold all
        tensors |= {f"features.{t}.{name}": _on_cpu(x) for name, x in flat(features).items()}
    if not all(map(finite, tensors.values())):
        raise InputError("NaN in the guidance: try --dtype float32")
    about = {"format": FORMAT, "resampled": G.resampled, "made": made}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"minipnp": json.dumps(about)})
    return path


def _made(path: Path) -> dict | None:
    try:
        return open_guidance(path, torch.device("cpu"))[1]
    except InputError:
        return None


def _on_cpu(x: Tensor) -> Tensor:
    """A tensor of its own, as the file wants it."""
    return x.cpu().clone(memory_format=torch.contiguous_format)


def open_guidance(path: Path, device: torch.device) -> tuple[Guidance, dict]:
    """The guidance, and what made it. Features stay in the file, mapped to memory, until a step reads them.

    Raises InputError for a file that is not one of `save_guidance`.
    """
    try:
        file = safe_open(path, framework="pt", device=str(device))
        about = json.loads((file.metadata() or {})["minipnp"])
        if about["format"] != FORMAT or not about["made"].keys() >= MADE:
            raise KeyError
        latents = {int(name[2:]): file.get_tensor(name) for name in file.keys() if name.startswith("x.")}
        single = {name: file.get_tensor(name) for name in ("x_0", "x_T", "texts")}
        G = Guidance(latents, **single, resampled=about["resampled"], features=_InFile(file))
        return G, about["made"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path}: not a guidance; `minipnp invert` makes one") from None


def check_guidance(path: Path, made: dict, model: dict) -> None:
    """Raises InputError where the file belongs to other weights, or its features to another dtype."""
    made, model = ({**about, "ema": bool(about["ema"])} for about in (made, model))
    if other := [name for name in DECISIVE if made[name] != model[name]]:
        sums = [name for name, sha in made["weights_sha256"].items() if model["weights_sha256"].get(name) != sha]
        said = {"sizes_sha256": "another config.json", "prediction": "another prediction type", "ema": "another --ema"}
        what = ", ".join(sums) or said.get(other[0], "other files")
        raise InputError(f"{path}: made with other weights ({what}); give their --model, or `minipnp invert` again")
    if made["kept"] and made["dtype"] != model["dtype"]:
        raise InputError(f"{path}: its features are {made['dtype']}; give --dtype {made['dtype']}")


def kept_of(made: dict) -> PnP | None:
    """The edit whose features the file holds."""
    return PnP.given(made["kept"]) if made["kept"] else None


class _InFile(Mapping[int, Features]):
    def __init__(self, file):
        self._file = file
        self._names = {}
        for key in file.keys():
            if key.startswith("features."):
                _, t, name = key.split(".", 2)
                self._names.setdefault(int(t), {})[name] = key

    def __getitem__(self, t: int) -> Features:
        return unflat({name: self._file.get_tensor(key) for name, key in self._names[t].items()})

    def __contains__(self, t: object) -> bool:
        return t in self._names  # the mapping's own would read the features

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
