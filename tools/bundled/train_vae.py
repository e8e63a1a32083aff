"""Step 3: the autoencoder, on crops of icons. → out/bundled/vae.pt

Loss: L1 + L2 + L1 of the differences between neighbouring pixels (edges), and a little of the divergence from N(0, 1)
that keeps latents near 0 and their spread small. The latents' scale is measured at the end.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.config import VAEConfig
from minipnp.errors import InputError
from minipnp.files.configs import read_config
from minipnp.files.tensors import TensorFile
from minipnp.vae import VAE
from minipnp.weights import AUTOENCODER, load_network
from tools.bundled import run
from tools.bundled.data import Icons, draw, generator, noise_generator, placed
from tools.bundled.training import (
    Clock,
    Plan,
    State,
    Team,
    adopt,
    autocast,
    before,
    need,
    options,
    settle,
    size_for,
    there,
    train,
    write,
)

CONFIG = VAEConfig(channels=(24, 48, 96), blocks=1, groups=8, scale=1.0)
KL = 1e-5
PLANS = {"cpu": Plan(batch=32, lr=1.5e-3, samples=160_000), "gpu": Plan(batch=128, lr=1.5e-3, samples=500_000)}


def crops(icons: Icons, n: int, seed: int, step: int) -> Tensor:
    """[n, 3, side/2, side/2]: half the side, which is enough to learn edges and textures, at a quarter of the cost."""
    g = generator(seed, step)
    pictures, _ = draw(icons, placed(icons, n, g))
    half = pictures.shape[-1] // 2
    corners = torch.randint(half + 1, (n, 2), generator=g).tolist()
    return torch.stack([x[:, i : i + half, j : j + half] for x, (i, j) in zip(pictures, corners, strict=True)])


def loss(vae: VAE, x: Tensor, g: torch.Generator) -> Tensor:
    """x: [n, 3, H, W] in [−1, 1]."""
    mean, logvar = vae.quant(vae.encoder(x)).float().chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    z = torch.randn(mean.shape, generator=g, device=x.device)
    y = vae.decoder(vae.post_quant(mean + (0.5 * logvar).exp() * z)).float()
    edges = F.l1_loss(y.diff(dim=2), x.diff(dim=2)) + F.l1_loss(y.diff(dim=3), x.diff(dim=3))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return F.l1_loss(y, x) + F.mse_loss(y, x) + edges + KL * kl


@torch.no_grad()
def measured_scale(vae: VAE, icons: Icons, seed: int) -> float:
    """What makes the latents' variance 1, over 256 augmented pictures. vae.config.scale is 1 here."""
    batches = (draw(icons, placed(icons, 32, generator(seed, step)))[0] for step in range(8))
    return 1 / torch.cat([vae.encode(x) for x in batches]).std().item()


def main(argv: list[str] | None = None) -> State:
    args = options(__doc__.splitlines()[0]).parse_args(argv)
    size = size_for(args.size, args.origin)
    device, plan = settle(args, PLANS)
    if args.origin:
        return there(args.work, "vae") or adopted(args.work, args.origin, size)
    icons = Icons.read(args.data, size).trained().to(device)
    torch.manual_seed(plan.seed)
    vae, team = VAE(CONFIG).to(device), Team()

    def loss_at(step: int) -> Tensor:
        n, part = plan.batch // team.parts, step * team.parts + team.part
        x, g = crops(icons, n, plan.seed, part), noise_generator(plan.seed, part, device)
        with autocast(device):
            return loss(vae, x, g)

    about, clock = {"vae": asdict(CONFIG), "size": size}, Clock(args.minutes)
    state = train("vae", vae, about, loss_at, plan, args.work, clock, team=team)
    if state.finished and state.scale is None:
        vae.load_state_dict(state.average)
        state.scale = measured_scale(vae, icons, plan.seed)
        if team.part == 0:
            write(args.work, "vae", state)
    return state


def adopted(work: Path, folder: Path, size: int) -> State:
    config = read_config(VAEConfig, folder / "vae" / "config.json")
    file = TensorFile(folder / "vae" / f"{AUTOENCODER.file}.safetensors")
    vae = load_network(AUTOENCODER, file, config, torch.device("cpu"), torch.float32)
    about = {"vae": asdict(replace(config, scale=1.0)), "size": size} | before(folder, "vae")
    return adopt(work, "vae", vae, about, config.scale)


def finished_vae(work: Path, device: torch.device) -> VAE:
    """Frozen, with its latents' scale. InputError: it is not there, or not finished."""
    state = need(work, "vae")
    if state.scale is None:
        raise InputError(f"{work / 'vae.pt'}: its training is not finished; run `python -m tools.bundled.train_vae`")
    vae = VAE(VAEConfig(**{**state.about["vae"], "scale": state.scale}))
    vae.load_state_dict(state.average)
    return vae.to(device).eval().requires_grad_(False)


if __name__ == "__main__":
    run(main)
