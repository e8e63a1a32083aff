"""Step 5: the UNet and the text encoder, together, on latents of augmented icons. → out/bundled/unet.pt

In two phases. First on all icons at 64 × 64 pixels. Then, with `--size 128`, from these weights (or those of --from) on
fewer icons at 128 × 128: the same network, whose latents now have 32 × 32 cells. → out/bundled/unet-128.pt

ε-prediction with min-SNR weights (Hang et al. 2023), γ = 5: timesteps are drawn that often. A tenth of the captions is
empty, for classifier-free guidance. The networks are the package's own; only how they begin is said here.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minipnp.config import TextConfig, UNetConfig
from minipnp.ddim import ALPHA_BAR
from minipnp.errors import InputError
from minipnp.files.loading import find_model, load_networks
from minipnp.layers import ResBlock, Transformer
from minipnp.text import TextEncoder
from minipnp.unet import UNet
from minipnp.vae import VAE
from tools.bundled import run
from tools.bundled.captions import Tokens
from tools.bundled.data import Icons, described, draw, generator, noise_generator, placed
from tools.bundled.train_vae import finished_vae
from tools.bundled.training import (
    FINISHED,
    Clock,
    Plan,
    State,
    Team,
    autocast,
    before,
    need,
    options,
    settle,
    size_for,
    train,
)

CHANNELS = (48, 96, 128, 128)
HEADS = 2  # 24 channels each and more; on a CPU 4 heads of half the size take a third longer
WIDTH = 96  # of the text embeddings
PLANS = {
    "cpu": Plan(batch=32, lr=8e-4, samples=300_000, warmup=200),
    "gpu": Plan(batch=256, lr=8e-4, samples=3_000_000, warmup=400, ema=0.9995),
}
FINISHING = {
    "cpu": Plan(batch=32, lr=5e-4, samples=144_000, warmup=60, ema=0.9995, cooldown=0.25),
    "gpu": Plan(batch=256, lr=8e-4, samples=2_000_000, warmup=200, ema=0.9995, cooldown=0.25),
}
GAMMA = 5.0
SIDE = (0.8, 0.9)  # of an icon: not far from where the benchmark has it, so that more is learnt of what it shows
TOKENS = "tokens.weight"  # of the text encoder


class Both(nn.Module):
    """ε_θ and its text encoder, which are trained as one.

    used: token ids in ascending order. Only these are embedded: of 49,408 tokens the captions have 127, and an
    optimiser that goes through all of them takes a tenth of a CPU's time.
    """

    def __init__(self, unet: UNetConfig, text: TextConfig, used: Tensor):
        super().__init__()
        self.text = text
        self.unet, self.text_encoder = UNet(unet), TextEncoder(replace(text, vocabulary=len(used)))
        self.register_buffer("used", used)

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x_t, t, self.text_encoder(torch.searchsorted(self.used, ids)))

    @classmethod
    def of(cls, state: State) -> "Both":
        """Those of a checkpoint: the running average."""
        both = cls(UNetConfig(**state.about["unet"]), TextConfig(**state.about["text"]), state.average["used"])
        both.load_state_dict(state.average)
        return both

    @classmethod
    def load(cls, folder: Path, used: Tensor) -> "Both":
        """Those of an exported model, to go on with."""
        source = find_model(folder)
        both = cls(source.configs["unet"], source.configs["text_encoder"], used)
        unet, _, text_encoder = load_networks(source, torch.device("cpu"), torch.float32)
        both.unet.load_state_dict(unet.state_dict())
        weights = text_encoder.state_dict()
        both.text_encoder.load_state_dict(weights | {TOKENS: weights[TOKENS][used]})
        return both

    def for_size(self, cells: int) -> "Both":
        """The same networks, for latents of so many cells a side."""
        both = Both(replace(self.unet.config, size=cells), self.text, self.used)
        both.load_state_dict(self.state_dict())
        return both

    def initialise(self) -> None:
        """Branches begin at 0, as in Stable Diffusion."""
        for module in self.modules():
            last = {ResBlock: "conv2", Transformer: "proj_out", UNet: "conv_out"}.get(type(module))
            if last:
                nn.init.zeros_(getattr(module, last).weight)
                nn.init.zeros_(getattr(module, last).bias)
        nn.init.normal_(self.text_encoder.tokens.weight, std=0.02)
        nn.init.normal_(self.text_encoder.positions.weight, std=0.01)


def every_token(text_encoder: dict[str, Tensor], used: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """The weights of a text encoder that embeds `used` → of one for the whole vocabulary: the others' are 0."""
    embeddings = text_encoder[TOKENS]
    everything = embeddings.new_zeros(vocabulary, embeddings.shape[1])
    everything[used] = embeddings
    return text_encoder | {TOKENS: everything}


def alpha_bar(device: torch.device) -> Tensor:
    return torch.tensor(ALPHA_BAR, dtype=torch.float32, device=device)


def timesteps(n: int, g: torch.Generator) -> Tensor:
    """[n], drawn with min-SNR's weights min(SNR, γ)/SNR, where SNR = ᾱ/(1 − ᾱ): the loss needs none of its own then."""
    snr = alpha_bar(g.device) / (1 - alpha_bar(g.device))
    return torch.multinomial(snr.clamp(max=GAMMA) / snr, n, replacement=True, generator=g)


def loss(both: Both, x_0: Tensor, ids: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Mean of ‖z − ε_θ(x_t, P, t)‖². x_0, z: [n, 4, h, w], ids: [n, 77], t: [n] timesteps."""
    a = alpha_bar(x_0.device)[t][:, None, None, None]
    e = both(a.sqrt() * x_0 + (1 - a).sqrt() * z, t, ids)
    return (e.float() - z).square().mean()


def batch(icons: Icons, vae: VAE, tokens: Tokens, n: int, seed: int, step: int) -> tuple[Tensor, ...]:
    """x_0, ids, t, z of `loss`, on the VAE's device."""
    device = vae.quant.weight.device
    g, there = generator(seed, step), noise_generator(seed, step, device)
    p = placed(icons, n, g, mirrored=0, side=SIDE)  # as they are drawn: what is more to learn is learnt less well
    pictures, ids = draw(icons, p)[0], tokens(*described(icons, p, g))
    with torch.no_grad(), autocast(device):
        x_0 = vae.encode(pictures.contiguous(memory_format=torch.channels_last))
    return x_0, ids.to(device), timesteps(n, there), torch.randn(x_0.shape, generator=there, device=device)


def main(argv: list[str] | None = None) -> State:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs=4, help="of the UNet's four resolutions")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the text embeddings (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile: minutes to begin, then faster on CUDA")
    args = parser.parse_args(argv)
    size = size_for(args.size, args.origin)
    finishing = size == FINISHED
    device, plan = settle(args, FINISHING if finishing else PLANS)
    team = Team()
    vae, tokens = finished_vae(args.work, device), Tokens.read(args.data)
    vae.to(memory_format=torch.channels_last)
    icons = Icons.read(args.data, size)
    icons = (icons.finished() if finishing else icons.trained()).to(device)

    torch.manual_seed(plan.seed)
    cells = size // vae.config.factor
    if args.origin:
        both = Both.load(args.origin, tokens.used())
    elif finishing:
        first = need(args.work, "unet")
        if not first.finished:
            raise InputError(f"{args.work / 'unet.pt'}: the first phase is not finished; run it without --size {size}")
        both = Both.of(first)
    else:
        text = TextConfig(width=args.width, layers=2, heads=4, mlp=4 * args.width)
        channels = tuple(args.channels or CHANNELS)
        both = Both(UNetConfig(channels=channels, heads=HEADS, context=args.width, groups=16, size=cells), text,
                    tokens.used())  # fmt: skip
        both.initialise()
    both = both.for_size(cells).to(device, memory_format=torch.channels_last)
    compute = torch.compile(loss) if args.compile else loss

    def loss_at(step: int) -> Tensor:
        now = batch(icons, vae, tokens, plan.batch // team.parts, plan.seed, step * team.parts + team.part)
        with autocast(device):
            return compute(both, *now)

    about = {"unet": asdict(both.unet.config), "text": asdict(both.text), "size": size, "side": list(SIDE)}
    about |= {"used": tokens.used().tolist(), "icons": len(icons)}
    if args.origin:
        about |= before(args.origin, "unet")
    elif finishing:
        about["before"] = {"about": first.about, "plan": first.plan, "step": first.step, "steps": first.steps}
    name = f"unet-{FINISHED}" if finishing else "unet"
    return train(name, both, about, loss_at, plan, args.work, Clock(args.minutes), team=team)


if __name__ == "__main__":
    run(main)
