"""What attention looks at: leading components of self-attention A (Fig. 6), and where words of the prompt attend."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minipnp.guidance import Progress, silent
from minipnp.methods.maps import word_map
from minipnp.methods.words import words_of
from minipnp.model import StableDiffusion
from minipnp.see.collect import Seen, check_layers
from minipnp.see.pca import principal
from minipnp.slots import Layer, Tap
from minipnp.unet import TABLE


def components(A: Tensor, height: int, width: int, k: int = 3) -> Tensor:
    """A, the mean over heads, [H·W, H·W] → its k leading components [k, H, W].

    A cell's row says where it attends to; cells whose rows are alike get the same colour. The components are of one
    picture: the variables are its places, which mean something else in another.
    """
    rows = A.double() - A.double().mean(dim=0)
    return (rows @ principal(A, k)).T.reshape(k, height, width).float()


@torch.no_grad()
def word_maps(
    sd: StableDiffusion,
    seen: Seen,
    prompt: str,
    layers: Sequence[Layer],
    ts: Collection[int],
    progress: Progress = silent,
) -> list[tuple[str, Tensor]]:
    """The words of the prompt with their cross-attention [h, w] in the latent's cells, as Prompt-to-Prompt shows it.

    The mean over timesteps, layers and heads of M, the sum over the word's tokens: a share of the attention, 0 to 1.
    Layers with fewer cells are enlarged (bilinear). `seen.text` must be the prompt's embedding.
    """
    check_layers("words", layers)
    height, width = seen.x_0.shape[2:]
    found = words_of(sd.tokenizer, prompt)
    sums = [torch.zeros(height, width) for _ in found]
    for t in progress(ts, len(ts), "attention"):
        M = sd.unet.tap(seen.x[t], t, seen.text, Tap(M=layers), stop=True)[1].M
        for layer, attn in M.items():
            level = TABLE[layer].level
            for (_, tokens), total in zip(found, sums, strict=True):
                one = word_map({layer: attn}, tokens, height >> level, width >> level)
                total += F.interpolate(one, (height, width), mode="bilinear")[0, 0].cpu()
    return [(word, total / (len(ts) * len(layers))) for (word, _), total in zip(found, sums, strict=True)]
