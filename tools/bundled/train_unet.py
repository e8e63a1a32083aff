"""Step 5: the UNet and the text encoder, together, on latents of augmented icons. → out/bundled/unet.pt

ε-prediction with min-SNR weighting (Hang et al. 2023), γ = 5; a tenth of the captions empty, for classifier-free
guidance. The networks are the package's own; only how they begin is said here.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from minipnp.config import TextConfig, UNetConfig
from minipnp.ddim import ALPHA_BAR
from minipnp.layers import ResBlock, Transformer
from minipnp.loading import find, load_networks
from minipnp.text import TextEncoder
from minipnp.unet import UNet
from minipnp.vae import VAE
from tools.bundled import run
from tools.bundled.captions import Tokens
from tools.bundled.data import Icons, described, draw, generator, noise_generator, placed
from tools.bundled.train_vae import finished_vae
from tools.bundled.training import Clock, Plan, State, Team, autocast, options, settle, train

CHANNELS = {64: (48, 96, 128, 128), 128: (64, 96, 128, 128)}  # by the pictures' size
HEADS = 2  # 24 channels each and more; on a CPU 4 heads of half the size take a third longer
WIDTH = 96  # of the text embeddings
PLANS = {
    "cpu": Plan(batch=32, lr=8e-4, samples=144_000, warmup=200),
    "gpu": Plan(batch=256, lr=8e-4, samples=3_000_000, warmup=400, ema=0.9995),
}
GAMMA = 5.0


class Both(nn.Module):
    """ε_θ and its text encoder, which are trained as one."""

    def __init__(self, unet: UNetConfig, text: TextConfig):
        super().__init__()
        self.unet, self.text_encoder = UNet(unet), TextEncoder(text)

    @classmethod
    def load(cls, folder: Path) -> "Both":
        """Those of an exported model, to go on with."""
        source = find(folder)
        both = cls(source.configs["unet"], source.configs["text_encoder"])
        unet, _, text_encoder = load_networks(source, torch.device("cpu"), torch.float32)
        both.unet.load_state_dict(unet.state_dict())
        both.text_encoder.load_state_dict(text_encoder.state_dict())
        return both

    def initialise(self, used: Tensor) -> None:
        """Branches begin at 0, as in Stable Diffusion; so do the embeddings of tokens that no caption has, and stay."""
        for module in self.modules():
            last = {ResBlock: "conv2", Transformer: "proj_out", UNet: "conv_out"}.get(type(module))
            if last:
                nn.init.zeros_(getattr(module, last).weight)
                nn.init.zeros_(getattr(module, last).bias)
        tokens = self.text_encoder.tokens.weight
        nn.init.zeros_(tokens)
        with torch.no_grad():
            tokens[used] = 0.02 * torch.randn(len(used), tokens.shape[1])
        nn.init.normal_(self.text_encoder.positions.weight, std=0.01)


def loss(both: Both, x_0: Tensor, ids: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Mean of min(SNR, γ)/SNR · ‖z − ε_θ(x_t, P, t)‖². x_0, z: [n, 4, h, w], ids: [n, 77], t: [n] timesteps."""
    a = torch.tensor(ALPHA_BAR, dtype=torch.float32, device=x_0.device)[t][:, None, None, None]
    snr = a / (1 - a)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * z
    e = both.unet(x_t, t, both.text_encoder(ids))
    return (snr.clamp(max=GAMMA) / snr * (e.float() - z).square()).mean()


def batch(icons: Icons, vae: VAE, tokens: Tokens, n: int, seed: int, step: int) -> tuple[Tensor, ...]:
    """x_0, ids, t, z of `loss`, on the VAE's device."""
    device = vae.quant.weight.device
    g, there = generator(seed, step), noise_generator(seed, step, device)
    p = placed(icons, n, g, mirrored=0)  # as they are drawn: a picture more to learn would be each one less well
    pictures, ids = draw(icons, p)[0], tokens(*described(icons, p, g))
    with torch.no_grad(), autocast(device):
        x_0 = vae.encode(pictures)
    t = torch.randint(len(ALPHA_BAR), (n,), generator=there, device=device)
    return x_0, ids.to(device), t, torch.randn(x_0.shape, generator=there, device=device)


def main(argv: list[str] | None = None) -> State:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs=4, help="of the UNet's four resolutions")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the text embeddings (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile: minutes to begin, then faster on CUDA")
    args = parser.parse_args(argv)
    device, size, plan = settle(args, PLANS)
    team = Team()
    vae, tokens = finished_vae(args.work, device), Tokens.read(args.data)
    icons = Icons.read(args.data, size).trained().to(device)

    torch.manual_seed(plan.seed)
    if args.origin:
        both = Both.load(args.origin)
    else:
        text = TextConfig(width=args.width, layers=2, heads=4, mlp=4 * args.width)
        channels = tuple(args.channels or CHANNELS[size])
        unet = UNetConfig(channels=channels, heads=HEADS, context=args.width, groups=16, size=size // vae.config.factor)
        both = Both(unet, text)
        both.initialise(tokens.used())
    both.to(device)
    compute = torch.compile(loss) if args.compile else loss

    def loss_at(step: int) -> Tensor:
        now = batch(icons, vae, tokens, plan.batch // team.parts, plan.seed, step * team.parts + team.part)
        with autocast(device):
            return compute(both, *now)

    about = {"unet": asdict(both.unet.config), "text": asdict(both.text_encoder.config), "size": size}
    return train("unet", both, about, loss_at, plan, args.work, Clock(args.minutes), team=team)


if __name__ == "__main__":
    run(main)
