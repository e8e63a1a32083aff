"""Features that are kept while a guidance is made, so that the edit needs no passes of its own for them.

In the run's dtype: 0.7 GB for SD-1.5 at 512 × 512 pixels and 50 steps in half precision.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minipnp.errors import NoRoom
from minipnp.slots import Attn, Features, Layer, Part

MEMINFO = Path("/proc/meminfo")  # Linux


class Kept(MutableMapping[int, Features]):
    """f, q and k by level, in the first place where all of them fit: the device, the CPU's memory, the disk.

    levels: how many there will be. The place is chosen for the first, and again for one that is larger than those
    before: an inversion begins with levels of f alone. Each place is used to its half. beside: whether they may stay on
    the device, beside the network.
    """

    def __init__(self, device: torch.device, levels: int, beside: bool = True):
        self.device = device
        self.levels = levels
        self.beside = beside
        self.place: str | None = None  # "device", "memory" or "disk"; None as long as nothing is kept
        self._there: dict[int, Features | Path] = {}
        self._largest = 0
        self._folder = None

    def __setitem__(self, t: int, features: Features) -> None:
        tensors = flat(features)
        if (size := sum(x.nbytes for x in tensors.values())) > self._largest:
            self._largest = size
            self._choose(size * max(1, self.levels - len(self)))
        if self.place == "disk":
            self._there[t] = self._folder / f"{t}.safetensors"
            try:
                save_file({name: x.contiguous() for name, x in tensors.items()}, self._there[t])
            except (OSError, SafetensorError) as error:
                raise NoRoom(f"{self._folder}: no room for the guidance's features ({error}); set TMPDIR") from None
        elif self.place == "memory":
            self._there[t] = unflat({name: x.cpu() for name, x in tensors.items()})
        else:
            self._there[t] = features

    def __getitem__(self, t: int) -> Features:
        features = self._there[t]
        if isinstance(features, Path):
            return unflat(load_file(features, device=str(self.device)))
        return unflat({name: x.to(self.device) for name, x in flat(features).items()})

    def __delitem__(self, t: int) -> None:
        if isinstance(path := self._there.pop(t), Path):
            path.unlink()

    def __contains__(self, t: object) -> bool:
        return t in self._there  # the mapping's own would read the features

    def __iter__(self) -> Iterator[int]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)

    def _choose(self, size: int) -> None:
        free = {"device": free_memory(self.device)} if self.beside else {}
        free |= {"memory": free_memory(torch.device("cpu"))}
        self.place = next((place for place, there in free.items() if size <= there / 2), "disk")
        if self.place == "disk" and self._folder is None:
            self._temporary = TemporaryDirectory(prefix="minipnp-")  # gone with this object
            self._folder = Path(self._temporary.name)


def free_memory(device: torch.device) -> int:
    """Bytes that are free, of the device, or of the CPU's memory; on a system that does not say, more than can be."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # held by PyTorch, unused
        return torch.cuda.mem_get_info(device)[0] + idle
    if device.type == "mps":  # a Mac's one memory; the GPU may have a share of it
        share = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return min(share, free_memory(torch.device("cpu")))
    if MEMINFO.exists():
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    if sys.platform == "darwin":
        said = subprocess.run(["vm_stat"], capture_output=True, text=True, check=True).stdout
        pages = re.findall(r"^Pages (?:free|inactive|speculative): +(\d+)", said, re.MULTILINE)
        return sum(map(int, pages)) * int(re.search(r"page size of (\d+) bytes", said)[1])
    return 2**62


def flat(features: Features) -> dict[str, Tensor]:
    """By names such as `f.decoder.4`."""
    tensors = {f"f.{name(layer)}": f for layer, f in features.f.items()}
    tensors |= {f"s.{name(layer)}": s for layer, s in features.s.items()}
    for layer, a in features.A.items():
        tensors |= {f"{what}.{name(layer)}": x for what, x in (("q", a.q), ("k", a.k)) if x is not None}
    return tensors


def unflat(tensors: dict[str, Tensor]) -> Features:
    of = {"f": {}, "q": {}, "k": {}, "s": {}}
    for key, x in tensors.items():
        what, part, row = key.split(".")
        of[what][Layer(Part[part.upper()], int(row))] = x
    A = {layer: Attn(q=of["q"].get(layer), k=of["k"].get(layer)) for layer in of["q"] | of["k"]}
    return Features(of["f"], A, s=of["s"])


def name(layer: Layer) -> str:
    return f"{layer.part.name.lower()}.{layer.row}"
