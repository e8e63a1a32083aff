"""Background LPIPS: did the picture change where nothing was to be edited?

    LPIPS(x, y) = Σ over layers of the mean over places of Σ_c w_c · (f̂_c(x) − f̂_c(y))²

f̂: a layer's features of unit length at each place; w: weights learnt from people's judgements (Zhang et al. 2018). The
foreground is black in both pictures, as PIE-Bench's published code has it, and LPIPS is that of the whole; 0 for the
same background. Network: SqueezeNet 1.1, as in PIE-Bench, by torchmetrics (an extra: pip install -e '.[evaluate]'), at
the pictures' own size.
"""

from pathlib import Path

import torch
from torch import Tensor

from minipnp.errors import InputError
from minipnp.measure.published import SQUEEZENET, find_published


def network() -> torch.nn.Module:
    """LPIPS with the published w, and random features."""
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError:
        raise InputError("background LPIPS needs torchmetrics: pip install -e '.[evaluate]'") from None
    return _LPIPS(net="squeeze", pnet_rand=True)


def load_lpips(folder: Path | None = None, device: torch.device | str = "cpu") -> torch.nn.Module:
    """InputError: the weights are not in the folder, or cannot be fetched; torchmetrics is not installed."""
    lpips = network()
    published = torch.load(find_published(SQUEEZENET, folder), map_location="cpu", weights_only=True)
    features = {name.removeprefix("features."): x for name, x in published.items() if name.startswith("features.")}
    # torchmetrics has the same modules in seven slices, by their old numbers: slices.2.6.… is features.6.…
    names = {name: name.split(".", 2)[2] for name in lpips.net.state_dict()}
    lpips.net.load_state_dict({name: features[old] for name, old in names.items()})
    return lpips.eval().to(device)


@torch.no_grad()
def background_lpips(lpips: torch.nn.Module, x: Tensor, y: Tensor, foreground: Tensor) -> float:
    """x, y: pictures [1, 3, H, W] in [−1, 1]. foreground: bool [1, H, W], what does not count."""
    device = next(lpips.parameters()).device
    x, y = (torch.where(foreground[:, None], -1.0, picture.float()).to(device) for picture in (x, y))
    return lpips(x, y).item()
