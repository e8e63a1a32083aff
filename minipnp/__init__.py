"""Plug-and-Play Diffusion Features on a hand-written Stable Diffusion 1.5. See README.md for the order of reading."""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "StableDiffusion": "model",
    "load": "files.loading",
    "Guidance": "guidance",
    "Inversion": "guidance",
    "PnP": "pnp",
    "draw": "pipeline",
    "guidance_from_picture": "pipeline",
    "guidance_from_prompt": "pipeline",
    "reconstruct": "pipeline",
    "translate": "pipeline",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    """Imported at first use: torch takes a second and a half, for which `minipnp --help` need not wait."""
    if name not in _HOME:
        raise AttributeError(f"module 'minipnp' has no attribute {name!r}")
    return getattr(import_module(f"minipnp.{_HOME[name]}"), name)
