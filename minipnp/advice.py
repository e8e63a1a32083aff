"""What a model advises: the settings that suit it, where it differs from Stable Diffusion 1.5 at 512 pixels.

The paper names decoder layers by number, but what counts is how many cells they have. Its layer 4 has 16 × 16 cells in
Stable Diffusion, whose latents have 64 × 64. In a model whose latents have 32 × 32 cells, layers 6 to 8 have them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from minipnp.unet import ATTENTIONS, TABLE

SHARES = sorted({2.0 ** -TABLE[layer].level for layer in ATTENTIONS})  # of the latent's side, at which there are maps


@dataclass(frozen=True)
class Advice:
    """Settings that suit a model. The defaults are the paper's, for Stable Diffusion.

    options: values by the options' names, for every settings class that has such an option.
    layer: the decoder layer, 3 to 11, in which pictures are looked at (features, segment, correspond).
    share: the side of the cells at which maps of words are read and edited, as a share of the latent's side.
    why: one sentence for whoever sees that a value is not the paper's.
    Raises ValueError for a layer or a share that no UNet has.
    """

    options: Mapping[str, object] = field(default_factory=dict)
    layer: int = 4
    share: float = 1 / 4
    why: str = ""

    def __post_init__(self):
        if self.layer not in range(3, 12):
            raise ValueError(f"layer {self.layer}: give a decoder layer from 3 to 11")
        if self.share not in SHARES:
            raise ValueError(f"share {self.share}: give one of {', '.join(map(str, SHARES))}")
