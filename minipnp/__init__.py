"""Plug-and-Play Diffusion Features on a hand-written Stable Diffusion 1.5. See README.md for the order of reading."""

from minipnp.errors import InputError
from minipnp.guidance import Guidance, Inversion
from minipnp.model import StableDiffusion, load
from minipnp.pnp import PnP
from minipnp.translate import draw, guidance_from_picture, guidance_from_prompt, reconstruct, translate

__version__ = "0.1.0"
__all__ = [
    "Guidance", "InputError", "Inversion", "PnP", "StableDiffusion",
    "draw", "guidance_from_picture", "guidance_from_prompt", "load", "reconstruct", "translate",
]  # fmt: skip
