"""The devices that are not here: a GPU (CUDA) and a Mac's (MPS). All other tests run on the CPU, see conftest.py.

Tensors that have a device but no numbers (FakeTensorMode) take the real code through all methods: one on another device
than its partners raises, and a mode on top notes where the host waits for the device.
"""

import os
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from conftest import relative
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minipnp
from minipnp.errors import InputError, explain, is_lack_of_memory
from minipnp.files import loading
from minipnp.files.hub import WEIGHTS
from minipnp.files.loading import load, pick_device
from minipnp.layers import Attention, attend
from minipnp.machine import kept, mps_attention, speed
from minipnp.machine.mps_attention import attend_in_parts
from minipnp.machine.speed import suit
from minipnp.measure import metrics
from minipnp.methods import masked_pnp
from minipnp.methods.original import Original, Taking
from minipnp.methods.registry import METHODS, edit
from minipnp.slots import Features
from minipnp.vae import SpatialAttention
from tools.bench import __main__ as bench

DTYPES = {"F16": torch.float16, "F32": torch.float32}
PACKAGE = str(Path(minipnp.__file__).parent)
CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))
ROOM = 2**40


# ---- without numbers ----


class Waits(TorchDispatchMode):
    """Where the host waits for the device: by function, how often it reads a number there or copies to or from it."""

    def __init__(self):
        super().__init__()
        self.at = Counter()
        self.back = Counter()  # of these, what comes from the device

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        reads = op._schema.name == "aten::_local_scalar_dense"
        # A fake has no numbers: what the code asks of them (finite? more than 0?) is answered with yes.
        out = torch.ones((), dtype=args[0].dtype, device="meta") if reads else op(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(y) if isinstance(x, torch.Tensor)] for y in ((args, kwargs), out))
        there, here = ({x.device.type for x in tensors} - {"meta"} for tensors in (given, made))
        if any(x.dtype == torch.float64 and x.device.type != "cpu" for x in made if isinstance(x, FakeTensor)):
            raise TypeError("float64, which MPS does not have")
        if (reads and there != {"cpu"}) or (not reads and there and here and there != here):
            frame = sys._getframe(1)
            while not frame.f_code.co_filename.startswith(PACKAGE):
                frame = frame.f_back
            self.at[frame.f_code.co_name] += 1
            self.back[frame.f_code.co_name] += reads or here == {"cpu"}
        return (True if out.dtype == torch.bool else 1) if reads else out


def convert(module, function, recurse=True):
    """nn.Module's own swaps tensors, which fakes do not allow."""
    for m in module.modules():
        m._parameters.update({k: nn.Parameter(function(p), False) for k, p in m._parameters.items() if p is not None})
    return module


def to_list(x):
    """FakeTensor's own reads each number by itself; a tensor's is one copy."""
    return [y.item() for y in x.cpu()]


@contextmanager
def without_numbers(mode, waits):
    def tensor(file, name):
        return torch.empty(file.header[name]["shape"], dtype=DTYPES[file.header[name]["dtype"]])

    with (
        patch.object(loading, "pick_device", torch.device), patch.object(loading.TensorFile, "tensor", tensor),
        patch.object(FakeTensor, "data_ptr", lambda x: 0), patch.object(FakeTensor, "tolist", to_list),
        patch.object(nn.Module, "_apply", convert), patch.object(kept, "free_memory", lambda device: ROOM),
        patch.object(masked_pnp, "read_mask", lambda o, path: torch.ones(1, 1, *o.latent_sides)),
        mode, waits,
    ):  # fmt: skip
        yield


@contextmanager
def bundled(device, **how):
    """The bundled model on a device that is not there → the model, and the mode that notes the waits."""
    waits = Waits()
    with without_numbers(FakeTensorMode(), waits):
        yield load(WEIGHTS / "bundled", device=device, **how), waits


@pytest.fixture(scope="module")
def loaded():
    mode, waits = FakeTensorMode(), Waits()
    with without_numbers(mode, waits):
        return load(WEIGHTS / "bundled", device="cuda"), mode, waits


@pytest.fixture
def cuda(loaded):
    sd, mode, waits = loaded
    with without_numbers(mode, waits):
        yield sd, waits


ORIGINALS = {  # what is edited: a picture, what its text generates, the same with features of two rows
    "picture": lambda sd, how: Original.from_picture(sd, torch.zeros(1, 3, sd.size, sd.size), "a cat", progress=how),
    "kept": lambda sd, how: Original.from_picture(
        sd, torch.zeros(1, 3, sd.size, sd.size), "a cat", keep=KEEP, progress=how
    ),
    "text": lambda sd, how: Original.from_text(sd, "a cat", progress=how),
    "both": lambda sd, how: Original.from_text(sd, "a cat", Taking(both=True), how),
}
ALWAYS = {"tau_f": 1.0, "tau_A": 1.0}
KEEP = METHODS["pnp"].settings(steps=2, **ALWAYS)
CASES = [  # method, settings under which all steps are alike, original, waits in each step
    ("pnp", ALWAYS | {"alpha": 0.5}, "picture", {}),
    ("pnp", ALWAYS, "kept", {}),
    ("pnp", ALWAYS, "text", {}),
    ("pnp", ALWAYS | {"alpha": 0.5}, "both", {}),
    ("sdedit", {"strength": 1.0}, "picture", {}),
    ("sdedit", {"strength": 1.0}, "text", {}),
    ("ddim", {}, "picture", {}),
    ("ddim", {}, "text", {}),
    ("p2p", {"cross_replace": 1.0, "self_replace": 1.0}, "text", {}),
    ("p2p", {"cross_replace": 1.0, "blend": ("cat=dog",), "spare": ("a",), "blend_start": 0.0}, "picture", {"mask": 1}),
    ("pix2pix-zero", {}, "picture", {"regularised": 1, "map_gradient": 1}),
    ("pix2pix-zero", {}, "text", {"map_gradient": 1}),
    ("masactrl", {"start_step": 0}, "picture", {}),
    ("masactrl", {"start_step": 0}, "text", {}),
    ("masactrl", {"start_step": 0, "word": "cat=dog"}, "picture", {"check_attended": 1}),
    ("masked-pnp", ALWAYS | {"word": "cat=dog"}, "picture", {"check_attended": 1}),
    ("masked-pnp", ALWAYS | {"word": "cat=dog"}, "both", {"check_attended": 1}),
    ("masked-pnp", ALWAYS | {"mask": "x.png"}, "text", {}),
    ("skip-inject", {"tau_s": 1.0}, "picture", {}),
    ("skip-inject", {"tau_s": 1.0}, "both", {}),
]
# Autograd asks the driver for the device, so the gradient is a tensor of its shape; what leads to it is run.
GRADIENT = patch.object(torch.autograd, "grad", lambda y, x: (torch.empty_like(x),))


def waits_of(sd, waits, method, options, original):
    """An edit in two steps → the waits in the second step of each phase (inversion, translation)."""
    each = Counter()

    def progress(things, total, what):
        before = Counter()
        for i, thing in enumerate(things):
            if i == 1:
                each.update(waits.at - before)
            before = Counter(waits.at)
            yield thing

    waits.at.clear()
    waits.back.clear()
    settings = METHODS[method].settings.given({"steps": 2, **options})
    with GRADIENT:
        pictures = edit(ORIGINALS[original](sd, progress), "a dog", settings, "a blob", progress)
    assert pictures.device.type == "cpu" and pictures.dtype == torch.float32
    return each


def test_all_methods_are_here():
    assert {method for method, *_ in CASES} == {*METHODS}


@pytest.mark.parametrize("method, options, original, each", CASES)
def test_a_method_stays_on_the_device_and_waits_for_it_only_where_it_must(cuda, method, options, original, each):
    assert waits_of(*cuda, method, options, original) == each


def test_a_model_that_predicts_v_does_not_wait_either():
    with bundled("cuda", prediction="v") as (sd, waits):
        assert not waits_of(sd, waits, "ddim", {}, "picture")


def test_low_memory_brings_only_results_from_the_device():
    with bundled("cuda", low_memory=True) as (sd, waits):
        assert {p.device.type for p in sd.unet.parameters()} == {"cuda"}
        waits_of(sd, waits, "pnp", ALWAYS, "kept")
        assert {name for name, n in waits.back.items() if n} == {"_finite", "decode_in_tiles", "<dictcomp>"}
        places = {name: {p.device.type for p in getattr(sd, name).parameters()} for name in ("unet", "vae")}
        assert places == {"unet": {"cuda"}, "vae": {"cpu"}}


PLANTED = {  # each a mistake that a CPU does not show
    "an index that is a list": "x[[0, 0]]",
    "an index on the CPU": "x[torch.zeros(2, dtype=torch.long)]",
    "a number that is read": "x if x.sum() > 0 else -x",
    "a tensor of a number": "x * torch.tensor(2.0, device=x.device)",
}


def planted(code):
    """A function of x and index that has this code, as if it stood in the package."""
    space = {"torch": torch}
    exec(compile(f"def planted(x, index):\n    return {code}", f"{PACKAGE}/planted.py", "exec"), space)
    return space["planted"]


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_wait_is_seen(cuda, mistake):
    _, waits = cuda
    waits.at.clear()
    planted(PLANTED[mistake])(torch.zeros(2, 3, device="cuda"), None)
    assert waits.at == {"planted": 1}


def test_a_list_as_the_index_of_guidance_of_two_rows_is_seen(cuda, monkeypatch):
    pick = planted("x[index]")
    monkeypatch.setattr(
        Features, "rows", lambda self, index: Features({layer: pick(f, index) for layer, f in self.f.items()})
    )
    assert waits_of(*cuda, "pnp", {"tau_f": 1.0}, "both") == {"planted": 1}


def test_a_tensor_of_another_device_is_seen(cuda, monkeypatch):
    there = lambda self, index: Features({layer: torch.zeros(f.shape) for layer, f in self.f.items()})  # noqa: E731
    monkeypatch.setattr(Features, "rows", there)
    with pytest.raises(RuntimeError, match="device"):
        waits_of(*cuda, "pnp", {"tau_f": 1.0}, "text")


# ---- a Mac ----

HEADS = (8, 32, 40, 64, 80, 96, 100, 160, 256, 512)  # SD-1.5's are 40, 80 and 160, its VAE's is 512


def qkv(d, rows=(1, 1, 1), heads=2, queries=50, keys=50):
    torch.manual_seed(0)
    sides = (queries, keys, keys)
    return [torch.randn(n, heads, side, d) for n, side in zip(rows, sides, strict=True)]


@pytest.fixture
def given_to_the_kernel(monkeypatch):
    """q, k and mask of each call of PyTorch's attention."""
    seen, kernel = [], F.scaled_dot_product_attention

    def counted(q, k, v, attn_mask=None, **how):
        seen.append((q, k, attn_mask))
        return kernel(q, k, v, attn_mask, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return seen


@pytest.mark.parametrize("most", [mps_attention.MOST, 4 * 3 * 2 * 50 * 7])  # the second: seven queries of three rows
@pytest.mark.parametrize("d", HEADS)
def test_attention_for_mps_is_the_same(d, most, monkeypatch, given_to_the_kernel):
    """Zeros are exact; the order of the sums over d and over the keys is not: 1e-6 is ten float32 roundings."""
    monkeypatch.setattr(mps_attention, "MOST", most)
    q, k, v = qkv(d, rows=(1, 3, 1))
    expected = attend(q, k, v)
    given_to_the_kernel.clear()
    assert relative(attend_in_parts(q, k, v), expected) <= 1e-6
    for part, *_ in given_to_the_kernel:
        assert part.shape[-1] in mps_attention.FUSED or 4 * part[..., 0].numel() * 50 <= most
    assert (d > 256 and most < 2**30) == (len(given_to_the_kernel) == 8)
    causal = torch.ones(50, 50, dtype=torch.bool).tril()
    for mask in (causal, causal[None, None], causal[-1:], causal.expand(3, 1, -1, -1)):
        given_to_the_kernel.clear()
        assert relative(attend_in_parts(q, k, v, mask), attend(q, k, v, mask)) <= 1e-6
        assert (len(given_to_the_kernel) == 8 + 1) == (most < 2**30)  # the last: the plain one
    q, k, v = qkv(d, queries=50, keys=11)  # cross-attention
    assert relative(attend_in_parts(q, k, v), attend(q, k, v)) <= 1e-6


@pytest.mark.parametrize("cells", [64 * 64, 96 * 96, 128 * 128, 256 * 256])
@pytest.mark.parametrize("heads, d, level", [(8, 40, 0), (8, 80, 1), (8, 160, 2), (1, 512, 0)])
def test_no_scores_of_sd_15_grow_past_what_mps_bears(heads, d, level, cells, given_to_the_kernel):
    """Of two rows of text, on tensors without numbers. What died there: 96 × 96 cells are 768 × 768 pixels."""
    n = cells // 4**level
    q = torch.empty(2, heads, n, d, device="meta")
    assert attend_in_parts(q, q, q).shape == q.shape
    written = [4 * q.shape[:3].numel() * k.shape[2] for q, k, _ in given_to_the_kernel if q.shape[3] > 256]
    assert max(written, default=0) <= 2**30
    if d == 40:
        assert (4 * 2 * heads * n**2 > 2**32) == (cells >= 96 * 96)


def test_on_mps_every_attention_of_both_networks_is_that_one():
    sd = load(WEIGHTS / "bundled", device="cpu")
    x, text = sd.noise(16, 16, 0), sd.embed("a flat icon of a cow", "")
    with torch.no_grad():
        plain = sd.unet(x, 501, text), sd.vae.decode(x)
        for network in (sd.unet, sd.vae):
            suit(network, MPS)
            found = [m for m in network.modules() if isinstance(m, Attention | SpatialAttention)]
            assert found and all(m.attend is attend_in_parts for m in found)
        for again, before in zip((sd.unet(x, 501, text), sd.vae.decode(x)), plain, strict=True):
            assert relative(again, before) <= 1e-5  # roundings add up through a network


def test_the_free_memory_of_a_mac(monkeypatch):
    said = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:                               1000.\n"
        "Pages active:                          400000.\nPages inactive:                          200.\n"
        "Pages speculative:                          30.\nPages throttled:                             0.\n"
    )
    monkeypatch.setattr(kept, "MEMINFO", Path("/nowhere"))
    monkeypatch.setattr(kept.sys, "platform", "darwin")
    monkeypatch.setattr(kept.subprocess, "run", lambda command, **how: SimpleNamespace(stdout=said))
    assert kept.free_memory(CPU) == 1230 * 16384
    for share, free in ((2**24, 2**24 - 2**20), (2**40, 1230 * 16384)):
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda share=share: share)
        monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2**20)
        assert kept.free_memory(MPS) == free


def test_a_mac_needs_a_torch_that_computes_attention_rightly():
    lines = (Path(__file__).resolve().parents[2] / "setup.cfg").read_text().splitlines()
    assert [line.strip() for line in lines if line.strip().startswith("torch") and "platform" in line] == [
        'torch; sys_platform != "darwin"',
        'torch>=2.12; sys_platform == "darwin"',
    ]


# ---- CUDA ----


def test_cuda_without_a_number_is_the_process_s_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device("cuda") == pick_device() == CUDA
    for rank, index in ((0, 0), (2, 2), (5, 1)):  # more processes than GPUs share them
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert pick_device("cuda") == pick_device() == torch.device("cuda", index)
        assert pick_device("cuda:3") == torch.device("cuda", 3) and pick_device("cpu") == CPU


def test_the_tests_run_on_the_cpu():
    """Also where there is a GPU, which this hides, from the processes that tests start too."""
    assert pick_device() == CPU and os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.fixture
def tf32():
    """PyTorch's default: convolutions on CUDA in TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, True
    yield lambda: (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_float32_on_cuda_is_no_tf32_and_nothing_else_changes_that(tf32):
    with bundled("cuda"):  # float16
        assert tf32() == (True, True)
    load(WEIGHTS / "bundled", device="cpu", dtype="float32")
    assert tf32() == (True, True)
    with bundled("cuda", dtype="float32"):
        assert tf32() == (False, False)


def test_what_is_measured_is_measured_in_float32(tf32, monkeypatch):
    def asked(device):
        raise KeyboardInterrupt

    metrics.load_metrics((), "bundled", device="cuda")
    assert tf32() == (False, False)
    monkeypatch.setattr(bench, "exact_float32", asked)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--dtype=float32", "--start-up"])


def test_compile_is_refused_where_it_cannot_work_or_is_of_no_use(monkeypatch):
    with pytest.raises(InputError, match="--compile takes minutes on a CPU .* leave it out"):
        load(WEIGHTS / "bundled", device="cpu", compile=True)
    there = {"triton": True, "cc": True}
    monkeypatch.setattr(speed, "find_spec", lambda name: there["triton"] or None)
    monkeypatch.setattr(speed.shutil, "which", lambda name: there["cc"] or None)
    speed.check_compiler(CUDA)
    there["cc"] = False
    with pytest.raises(InputError, match="--compile needs a C compiler"):
        speed.check_compiler(CUDA)
    there["triton"] = False
    with pytest.raises(InputError, match="--compile needs Triton"):
        speed.check_compiler(CUDA)


# ---- lack of memory, and of range ----

LACK = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.00 MB, max allowed: 9.07 GB)."
    ),
    RuntimeError("Invalid buffer size: 20.25 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", LACK, ids=str)
def test_a_lack_of_memory_is_known_whoever_says_it(error):
    assert is_lack_of_memory(error)
    assert "--low-memory" in explain(error) and "bfloat16" not in explain(error)


def test_other_errors_are_no_lack_of_memory():
    for error in (
        RuntimeError("CUDNN_STATUS_NOT_SUPPORTED"),
        OSError(28, "No space left on device"),
        ValueError("memory"),
    ):
        assert not is_lack_of_memory(error)


@pytest.fixture(scope="module")
def half():
    return load(WEIGHTS / "bundled", device="cpu", dtype="float16")


@pytest.fixture
def overflowing(half, monkeypatch):
    """A VAE of which one convolution is too large for float16 in bright pictures, as in some fine-tuned models."""
    bright = lambda m, args, y: y * 1e6 if args[0].float().amax() > 0.9 else y  # noqa: E731
    ends = [m.register_forward_hook(bright) for m in (half.vae.encoder.conv_in,)]
    yield half
    for end in ends:
        end.remove()


def test_where_the_vae_overflows_in_float16_it_is_used_in_float32_and_it_is_said(overflowing):
    sd, dark = overflowing, torch.full((1, 3, 64, 64), -0.5)
    before = sd.encode(dark)
    with pytest.warns(UserWarning, match="VAE overflows in float16") as said:
        x = sd.encode(-2 * dark)
    assert said[0].filename == __file__ and x.isfinite().all()
    assert {p.dtype for p in sd.vae.parameters()} == {torch.float16}
    assert torch.equal(sd.encode(dark), before)  # no picture depends on those before it


def test_of_several_pictures_each_is_decoded_as_if_alone(half, monkeypatch):
    """The decoder overflows for the second of them only."""
    large = lambda m, args, y: y * 1e6 if args[0].float().amax() > 50 else y  # noqa: E731
    end = half.vae.post_quant.register_forward_hook(large)
    x = half.noise(8, 8, 0)
    try:
        with pytest.warns(UserWarning, match="VAE overflows"):
            both = half.decode(torch.cat([x, 100 * x]))
        assert torch.equal(both[:1], half.decode(x)) and both.isfinite().all()
    finally:
        end.remove()


def test_what_is_nan_all_the_same_ends_in_one_line(half, monkeypatch):
    nan = torch.full((1, 4, 8, 8), torch.nan)
    with pytest.raises(InputError, match="NaN in the result: the UNet overflows in float16, try --dtype float32"):
        half.decode(nan)
    with pytest.raises(InputError, match="NaN in the result: get the model's files again"):
        replace(half, dtype=torch.float32).decode(nan)
    monkeypatch.setattr(half.vae, "decode", lambda x: x * torch.nan)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="NaN in what the VAE makes: get its file again"):
        half.decode(half.noise(8, 8, 0))
