"""The autoencoder: pictures [B, 3, H, W] in [−1, 1] ↔ latents [B, 4, H/factor, W/factor] of about unit variance."""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from minipnp.config import VAEConfig
from minipnp.layers import ResBlock, Upsample, attend

EPS = 1e-6  # of every norm in the VAE; the UNet's ResBlocks have 1e-5


class SpatialAttention(nn.Module):
    """One head of self-attention over all cells, added to the stream."""

    def __init__(self, c: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, eps=EPS)
        self.q, self.k, self.v, self.out = (nn.Linear(c, c) for _ in range(4))
        self.attend = attend  # as of layers.Attention

    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(self.norm(x), "b c h w -> b 1 (h w) c")
        h = self.out(self.attend(self.q(h), self.k(h), self.v(h)))
        return x + rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2])


class Middle(nn.Module):
    def __init__(self, c: int, groups: int):
        super().__init__()
        self.res1 = ResBlock(c, c, groups, EPS, time=None)
        self.attn = SpatialAttention(c, groups)
        self.res2 = ResBlock(c, c, groups, EPS, time=None)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.res1(x)
        x = self.attn(x)
        x, _ = self.res2(x)
        return x


class Level(nn.Module):
    """The ResBlocks of one resolution, and the change to the next."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, down=False, up=False):
        super().__init__()
        self.res = nn.ModuleList(
            ResBlock(c_in if j == 0 else c_out, c_out, groups, EPS, time=None) for j in range(blocks)
        )
        self.down = nn.Conv2d(c_out, c_out, kernel_size=3, stride=2, padding=0) if down else None
        self.up = Upsample(c_out) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x, _ = res(x)
        if self.down is not None:
            x = self.down(F.pad(x, (0, 1, 0, 1)))  # right and bottom only: trained that way, unlike the UNet's
        if self.up is not None:
            x = self.up(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        c = config.channels
        last = len(config.channels) - 1
        self.conv_in = nn.Conv2d(3, c[0], kernel_size=3, padding=1)
        self.levels = nn.ModuleList(
            Level(c[max(i - 1, 0)], c[i], config.blocks, config.groups, down=i < last) for i in range(len(c))
        )
        self.mid = Middle(c[-1], config.groups)
        self.norm_out = nn.GroupNorm(config.groups, c[-1], eps=EPS)
        self.conv_out = nn.Conv2d(c[-1], 2 * config.latent_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        # in the order of execution: coarsest first
        c = config.channels[::-1]
        last = len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, c[0], kernel_size=3, padding=1)
        self.mid = Middle(c[0], config.groups)
        self.levels = nn.ModuleList(
            Level(c[max(i - 1, 0)], c[i], config.blocks + 1, config.groups, up=i < last) for i in range(len(c))
        )
        self.norm_out = nn.GroupNorm(config.groups, c[-1], eps=EPS)
        self.conv_out = nn.Conv2d(c[-1], 3, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    def __init__(self, config: VAEConfig = VAEConfig()):
        super().__init__()
        self.config = config
        n = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant = nn.Conv2d(2 * n, 2 * n, kernel_size=1)
        self.post_quant = nn.Conv2d(n, n, kernel_size=1)

    def encode(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Picture → scaled latent: the posterior's mean or, with unit noise z of the latent's shape, a sample of it."""
        mean, logvar = self.quant(self.encoder(x.to(self.quant.weight.dtype))).float().chunk(2, dim=1)
        if z is not None:
            mean = mean + (0.5 * logvar.clamp(-30, 20)).exp() * z
        return mean * self.config.scale

    def decode(self, x0: Tensor) -> Tensor:
        """Scaled latent → picture; values may lie a little outside [−1, 1]."""
        x0 = (x0 / self.config.scale).to(self.quant.weight.dtype)
        return self.decoder(self.post_quant(x0)).float()
