"""make verify: a model's three networks against the published implementations, layer by layer, on its real weights.

    python -m tools.verify [--model MODEL] [--device cpu]

MODEL is a file, a folder, a hub id, sd15 or bundled; by default SD-1.5 where weights/ has it, else the bundled model.
Both sides read the files by their own loaders, in float32. Then come the check values that are published for SD-1.4 and
SD-1.5. Exit code: 0, 1 if anything differs, 2 if the model cannot be loaded. On a CPU SD-1.5 takes minutes.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.ddim import guided, noise, sample, timesteps
from minipnp.errors import InputError
from minipnp.files.checksums import sha256
from minipnp.files.hub import SAFETENSORS, SECONDS, WEIGHTS, is_model, resolve
from minipnp.files.loading import load
from minipnp.model import StableDiffusion
from minipnp.text import TextEncoder
from minipnp.unet import UNet
from minipnp.vae import VAE
from tools.verify.compare import PER_LAYER, WHOLE, Comparison

# ---- layer by layer ----

PROMPTS = ("a photograph of an astronaut riding a horse", "")


def comparisons(m: StableDiffusion) -> Iterator[tuple[str, Comparison]]:
    """(what is compared, comparison). Of the reference's networks there is one at a time."""
    from tools.verify import reference

    ids = m.tokenizer(*PROMPTS).to(m.device)
    theirs = reference.load(TextEncoder, m.source).to(m.device)
    yield f"text encoder, {len(ids)} prompts", reference.compare_text(m.text_encoder, theirs, ids)
    del theirs

    theirs = reference.load(VAE, m.source).to(m.device)
    side = min(m.size, 256)  # the layers of the VAE are large: 512 × 512 pixels would take 8 GB more
    picture = F.interpolate(m.noise(8, 8, seed=0)[:, :3].cpu(), (side, side), mode="bicubic").clamp(-1, 1).to(m.device)
    yield f"VAE encoder, {side} × {side} pixels", reference.compare_encode(m.vae, theirs, picture)
    x_0 = m.encode(picture)
    yield f"VAE decoder, {side} × {side} pixels", reference.compare_decode(m.vae, theirs, x_0)
    del theirs

    theirs = reference.load(UNet, m.source).to(m.device)
    size = m.unet.config.size
    x_0 = F.interpolate(x_0, (size, size), mode="bicubic")
    t, z = [981, 21], m.noise(size, size, seed=1)
    x = torch.cat([noise(x_0, z, level) for level in t])
    found = reference.compare_unet(m.unet, theirs, x, torch.tensor(t, device=m.device), m.embed(*PROMPTS))
    yield f"UNet, {size} × {size} cells, t = {t[0]} and {t[1]}", found


def print_table(what: str, found: Comparison) -> bool:
    """A line for each row of the network: its worst layer. Whether all agree."""
    rows: dict[str, list] = {}
    for d in found.layers:
        rows.setdefault(re.match(r".+?\.\d+|\w+\.mid|\w+", d.layer)[0], []).append(d)
    print(f"\n{what:46s} layers  ‖a−b‖/‖b‖  max|a−b|/max|b|")
    for name, layers in rows.items():
        _line(name, len(layers), max(d.relative for d in layers), max(d.largest for d in layers),
              all(d.within(PER_LAYER) for d in layers))  # fmt: skip
    _line(found.output.layer, "", found.output.relative, found.output.largest, found.output.within(WHOLE))
    if found.fault():
        print(f"  {found.fault()}")
    return found.fault() is None


def _line(name: str, layers: int | str, relative: float, largest: float, agrees: bool) -> None:
    errors = [f"{error:.1e}" if error else "0" for error in (relative, largest)]
    print(f"  {name:44s} {layers!s:>6s} {errors[0]:>11s} {errors[1]:>16s}  {'pass' if agrees else 'FAIL'}", flush=True)


# ---- published check values ----

SD14, SD15 = "SD-1.4", "SD-1.5"
UNETS = {  # SHA-256 of the file that the UNet is in: which one it is, and whether its weights are rounded to half
    SAFETENSORS["fp32"]["unet/diffusion_pytorch_model.safetensors"][1]: (SD15, False),
    SAFETENSORS["fp16"]["unet/diffusion_pytorch_model.fp16.safetensors"][1]: (SD15, True),
    "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa": (SD15, False),  # v1-5-pruned-emaonly
    "a35404d03ec8f977715a4d2a080ddf72e2144f2ee49bb1ee213258bc64f9cc87": (SD14, True),
}
# diffusers' slow tests. The picture: test_stable_diffusion_ddim (SD-1.4): its last 3 × 3 values of blue, in [0, 1].
PICTURE = [0.38019, 0.28647, 0.27321, 0.40377, 0.38290, 0.35446, 0.39218, 0.38165, 0.42239]
# ε: test_compvis_sd_v1_4 and …_v1_5, (seed, t): out[-1, -2:, -2:, :2].
EPS = {
    (33, 4): {
        SD14: [-0.4424, 0.1510, -0.1937, 0.2118, 0.3746, -0.3957, 0.0160, -0.0435],
        SD15: [-0.4430, 0.1570, -0.1867, 0.2376, 0.3205, -0.3681, 0.0525, -0.0722],
    },
    (9, 1000): {
        SD14: [0.8888, -0.5659, 0.5834, -0.7469, 1.1912, -0.3923, 1.1241, -0.4424],
        SD15: [0.8878, -0.5659, 0.5844, -0.7442, 1.1883, -0.3927, 1.1192, -0.4423],
    },
}
# arenasys' model toolkit: Σ(sigmoid(w) − ½) over the weights, rounded to half. It sums in float32, hence 1e-4 below.
SUMS = {"VAE": 17870.7051, "text encoder": -2097.8596}


class Check(NamedTuple):
    name: str
    found: str
    verdict: str  # pass, FAIL, not checked; —: it tells something, but not right from wrong


def checks(m: StableDiffusion) -> Iterator[Check]:
    """The published values. Only where the file is known to be that model can they be wrong: FAIL."""
    sd1 = (UNetConfig(prediction=m.unet.config.prediction), VAEConfig(), TextConfig())
    if (m.unet.config, m.vae.config, m.text_encoder.config) != sd1:
        yield Check("SD-1.4's and SD-1.5's values", "this model has other sizes", "not checked")
        return
    file = m.source.files["unet"]
    which, half = UNETS.get(sha256(file), (None, False))
    yield Check("the UNet's file by its SHA-256", which or "not one of those known here", "—")
    vae, text = same_sum("VAE", m.vae), same_sum("text encoder", m.text_encoder)
    known = {digest for files in SAFETENSORS.values() for _, digest in files.values()}
    for folder, check in (("vae", vae), ("text_encoder", text)):
        original = sha256(m.source.files[folder]) in known or (which and m.source.files[folder] == file)
        yield check._replace(verdict="FAIL") if original and check.verdict == "—" else check
    if m.unet.config.prediction == "v":
        yield Check("SD-1.4's and SD-1.5's ε", "this network predicts v", "not checked")
    else:
        yield from eps_checks(m, which, half)
    name = "SD-1.4's picture of 3 DDIM steps, ± 5e-3"
    if which == SD15:
        yield Check(name, "this is SD-1.5", "not checked")
    elif vae.verdict != "pass" or text.verdict != "pass":
        yield Check(name, "another VAE or text encoder", "not checked")
    else:
        far = farthest(ddim_picture(m), PICTURE)
        said = "pass" if far <= 5e-3 else "—, so this is not SD-1.4 in full precision, or something is wrong"
        yield Check(name, f"{far:.1e} away", said)


def same_sum(name: str, network: VAE | TextEncoder) -> Check:
    expected = SUMS[name]
    part = r"(encoder|decoder)\." if name == "VAE" else r".*\.fc[12]\."
    weights = (w for key, w in network.state_dict().items() if re.match(part, key))
    total = sum((w.cpu().half().float().sigmoid() - 0.5).sum(dtype=torch.float64).item() for w in weights)
    same = abs(total / expected - 1) <= 1e-4
    return Check(f"sum over the {name}, {expected} in SD-1.x", f"{total:.4f}", "pass" if same else "—")


@torch.no_grad()
def eps_checks(m: StableDiffusion, which: str | None, half: bool) -> Iterator[Check]:
    for (seed, t), values in EPS.items():
        name = f"ε of seed {seed} at t = {t}, ± 1e-3"
        try:
            x, context = (published_noise(seed, shape) for shape in ((4, 4, 64, 64), (4, 77, 768)))
        except InputError as error:
            yield Check(name, str(error), "not checked")
            continue
        e = m.unet(x[-1:].to(m.device), t, context[-1:].to(m.device))
        found = e[-1, -2:, -2:, :2].flatten()
        far = {model: farthest(found, value) for model, value in values.items()}
        nearest = which or min(far, key=far.get)
        wrong = "FAIL" if which and not half else "—"  # rounded weights may well be further away
        yield Check(name, f"{far[nearest]:.1e} from {nearest}'s", "pass" if far[nearest] <= 1e-3 else wrong)


def published_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Unit noise as diffusers' tests have it, from the hub, or from the hub's cache on this machine."""
    import huggingface_hub as hf

    repo, file = "fusing/diffusers-testing", f"gaussian_noise_s={seed}_shape={'_'.join(map(str, shape))}.npy"
    try:
        if not isinstance(hf.try_to_load_from_cache(repo, file, repo_type="dataset"), str):
            url = hf.hf_hub_url(repo, file, repo_type="dataset")
            hf.get_hf_file_metadata(url, timeout=SECONDS)  # once: the download itself would try for minutes
        found = np.load(hf.hf_hub_download(repo, file, repo_type="dataset"))
    except (hf.errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"its input cannot be fetched ({cause})") from None
    return torch.from_numpy(found).float().reshape(shape)


@torch.no_grad()
def ddim_picture(m: StableDiffusion, size: int = 64) -> Tensor:
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((1, 4, size, size))).float().to(m.device)
    text, null = m.embed(PROMPTS[0]), m.embed("")
    *_, (_, x_0) = sample(lambda x, t: guided(m.unet, x, t, text, null, 7.5), x, timesteps(3))
    return (m.decode(x_0)[0, -1, -3:, -3:].flatten() / 2 + 0.5).clamp(0, 1)


def farthest(found: Tensor, expected: list[float]) -> float:
    return (found.cpu() - torch.tensor(expected)).abs().max().item()


# ---- the command ----


def verify(path: Path, device: str | None = None) -> bool:
    """Print the tables; whether all agrees."""
    import diffusers
    import transformers

    m = load(path, device=device, dtype="float32")
    print(f"{path} on {m.device}, in float32")
    print(f"against diffusers {diffusers.__version__} and transformers {transformers.__version__}")
    print(f"allowed: {PER_LAYER:.0e} per layer, {WHOLE:.0e} per network", flush=True)
    wrong = [what for what, found in comparisons(m) if not print_table(what, found)]
    print("\npublished check values")
    for check in checks(m):
        print(f"  {check.name:44s} {check.found}  {check.verdict}", flush=True)
        wrong += [check.name] if check.verdict == "FAIL" else []
    print(f"\n{'DIFFERENT: ' + '; '.join(wrong) if wrong else 'All that was compared agrees.'}")
    return not wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="verify", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="sd15" if is_model(WEIGHTS / "sd15") else "bundled")
    parser.add_argument("--device", help="cpu, cuda or mps; default: the first of cuda, mps, cpu that is there")
    given = parser.parse_args(argv)
    try:
        from tools.verify import reference  # noqa: F401  says in one line if it is not installed

        return 0 if verify(resolve(given.model), given.device) else 1
    except InputError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
