"""Time and memory to a ready SD-1.5 on the CPU, by layout.

    python -m tools.bench.load [MODEL ...]

Without arguments it measures stand-ins: files with the headers of the published ones, and holes for numbers, which take
a few MB on the disk. What a disk costs is therefore not in it; give paths of real models for that.
"""

import gzip
import json
import math
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from minipnp.errors import InputError
from minipnp.files.loading import find_model, load_networks
from minipnp.weights import NETWORKS

HEADERS = Path(__file__).resolve().parents[2] / "tests" / "data" / "headers"
COMPONENTS = {f"{network.folder}/{network.file}": f"{network.folder}__{network.file}" for network in NETWORKS}
LAYOUTS = {  # what it is: {file: its header}
    "single file, fp32": {"model.safetensors": "v1-5-pruned-emaonly"},
    "single file, fp32, misaligned (v1-5-pruned)": {"model.safetensors": "v1-5-pruned"},
    "components, fp32 (text encoder misaligned)": {f"{k}.safetensors": v for k, v in COMPONENTS.items()},
    "components, fp16 → fp32": {f"{k}.fp16.safetensors": f"{v}.fp16" for k, v in COMPONENTS.items()},
}
ROW = "{:<44} {:>9} {:>12} {:>11} {:>9}"


def stand_in(path: Path, header: str) -> None:
    head = gzip.decompress((HEADERS / f"{header}.safetensors.header.gz").read_bytes())
    entries = json.loads(head[8 : 8 + struct.unpack("<Q", head[:8])[0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + max(e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"))


def memory() -> dict[str, float]:
    """GB: what this process has of its own (RssAnon), and the most that it had at a time with mapped pages (VmHWM).

    NaN where the system does not say.
    """
    try:
        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    except OSError:
        return {"RssAnon": math.nan, "VmHWM": math.nan}
    return {line[0].rstrip(":"): int(line[1]) * 1024 / 1e9 for line in lines if line[0] in ("RssAnon:", "VmHWM:")}


def measure(path: Path) -> dict[str, float]:
    before, start = memory(), time.perf_counter()
    networks = list(load_networks(find_model(path), torch.device("cpu"), torch.float32))
    ready, after = time.perf_counter(), memory()
    for module in networks:
        for tensor in module.parameters():
            tensor.sum()
    return {
        "ready": ready - start,
        "own": after["RssAnon"] - before["RssAnon"],
        "peak": after["VmHWM"] - before["VmHWM"],
        "read": time.perf_counter() - ready,
    }


def row(name: str, path: Path) -> None:
    """Each in a process of its own, so that none finds memory or modules that another has left."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.load", "--one", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    result = json.loads(done.stdout)
    print(
        ROW.format(name, *(f"{result[k]:.2f} {u}" for k, u in dict(ready="s", own="GB", peak="GB", read="s").items()))
    )


def main(models: list[str]) -> None:
    if models[:1] == ["--one"]:
        try:
            print(json.dumps(measure(Path(models[1]))))
        except InputError as error:
            sys.exit(str(error))
        return
    print(
        f"To float32 on the CPU, {torch.get_num_threads()} threads, torch {torch.__version__}. own: memory besides the"
    )
    print("mapped file. peak: with the pages of the file that were touched. then read: one pass over all numbers.")
    print(ROW.format("", "ready in", "own", "peak", "then read"))
    for model in models:
        row(model, Path(model))
    if not models:
        for name, files in LAYOUTS.items():
            with tempfile.TemporaryDirectory() as folder:
                for file, header in files.items():
                    stand_in(Path(folder) / file, header)
                row(name, Path(folder) / file if "/" not in file else Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
