"""CLIP score and CLIP-Acc: does the picture show what the text says?

    score(x, text) = cos(E_image(x), E_text(text)), −1 … 1

The Plug-and-Play paper and most others give the cosine, PIE-Bench 100 times it. CLIP-Acc, of pix2pix-zero, is the share
of pictures that are closer to the target text than to the source text. Network: CLIP ViT-L/14 of OpenAI by open_clip;
the picture's short side is brought to 224 pixels (bicubic), its centre cropped to 224 × 224.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.files.images import to_image
from minipnp.measure.published import CLIP, find_published


@dataclass(frozen=True)
class Clip:
    """model: open_clip's. tokenizer: texts → ids [n, 77]. look: picture → the network's input [3, size, size]."""

    model: torch.nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    look: Callable

    @torch.no_grad()
    def score(self, x: Tensor, *texts: str) -> Tensor:
        """The cosine of a picture [1, 3, H, W] in [−1, 1] with each text: [n]."""
        device = next(self.model.parameters()).device
        image = self.model.encode_image(self.look(to_image(x))[None].to(device))
        text = self.model.encode_text(self.tokenizer(list(texts)).to(device))
        return F.cosine_similarity(image, text).cpu()

    def closer(self, x: Tensor, target: str, source: str) -> bool:
        """Whether it counts for CLIP-Acc."""
        to_target, to_source = self.score(x, target, source)
        return bool(to_target > to_source)


def load_clip(folder: Path | None = None, device: torch.device | str = "cpu") -> Clip:
    """InputError: the weights are not in the folder, or cannot be fetched."""
    path = find_published(CLIP, folder)
    import open_clip

    # quickgelu: x·σ(1.702x), which OpenAI's weights were trained with
    model = open_clip.create_model("ViT-L-14-quickgelu", pretrained=str(path), device=device)
    return Clip(model.eval(), open_clip.get_tokenizer("ViT-L-14-quickgelu"), preprocessing(224))


def preprocessing(size: int) -> Callable:
    """PIL picture → [3, size, size], with OpenAI's means and deviations."""
    import open_clip

    return open_clip.image_transform(size, is_train=False, interpolation="bicubic", resize_mode="shortest")
