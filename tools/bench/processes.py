"""What is measured in processes of their own: the time to the first step, and the peak of a whole translation."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from minipnp.files.hub import WEIGHTS
from tools.bench.case import EDIT, SHORT
from tools.bench.load import LAYOUTS, stand_in

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = {  # what a fresh process does
    "Python alone": "",
    "torch": "import torch",
    "all that a translation needs": "import minipnp.app.translate, minipnp.tokenizer; minipnp.tokenizer.Tokenizer()",
    "all of open_clip, beside it": "import open_clip",
}
READY = "import minipnp; sd = minipnp.load({!r}, device={!r}, dtype={!r}); sd.embed('a cow')"
PEAK = """
import torch, minipnp
from tools.bench.load import memory
sd = minipnp.load({model!r}, device={device!r}, dtype={dtype!r}, low_memory={low_memory})
edit = minipnp.PnP(steps={steps})
G = minipnp.guidance_from_picture(sd, torch.zeros(1, 3, sd.size, sd.size), edit, keep=edit)
minipnp.translate(sd, G, ["a cow"], settings=edit)
print(torch.cuda.max_memory_allocated(sd.device) / 1e9 if sd.device.type == "cuda" else memory()["VmHWM"])
"""


@contextlib.contextmanager
def model_for(small: bool, dtype: torch.dtype) -> Iterator[str]:
    """The bundled model, or a stand-in for SD-1.5: the published headers, and holes for numbers, which take no room on
    the disk. So what a disk costs is not in what is measured with it.
    """
    if small:
        yield str(WEIGHTS / "bundled")
        return
    layout = "components, fp16 → fp32" if dtype == torch.float16 else "components, fp32 (text encoder misaligned)"
    with tempfile.TemporaryDirectory() as folder:
        for file, header in LAYOUTS[layout].items():
            stand_in(Path(folder) / file, header)
        yield folder


def start_up(small: bool, model: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds from the start of a process, the median of three."""
    ready = READY.format(model, str(device), str(dtype).removeprefix("torch."))
    codes = ({} if small else IMPORTS) | {"ready for the first step": ready}
    return {what: median(_process(code)[0] for _ in range(1 if small else 3)) for what, code in codes.items()}


def whole_peaks(model: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GB of a whole translation in a process of its own, weights included: of a picture of the model's own size.

    On CUDA what is allocated there. On the CPU, where 50 steps take too long, the process's memory, mapped files
    included, in 3: of what 50 keep of the guidance there are two steps'.
    """
    how = {
        "model": model,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "steps": whole_steps(device),
    }
    ways = {"all networks on the device": False, "--low-memory": True}
    return {way: float(_process(PEAK.format(low_memory=low, **how))[1]) for way, low in ways.items()}


def whole_steps(device: torch.device) -> int:
    return EDIT.steps if device.type == "cuda" else SHORT.steps


def _process(code: str) -> tuple[float, str]:
    """Seconds that a fresh process takes for it, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{code.strip()}\nended with: {done.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - began, done.stdout
