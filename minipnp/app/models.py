"""The model that a command works with: found, loaded, and described for the records."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

import minipnp
from minipnp.advice import Advice
from minipnp.app.log import Log
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.known_words import KnownWords, advice_of
from minipnp.files.loading import pick_device, pick_dtype
from minipnp.machine.low_memory import LowMemory
from minipnp.model import StableDiffusion
from minipnp.options import Options, options_of


def model_of(given: dict, half: bool = False) -> tuple[Path, str]:
    """→ its place, and why this one, where --model does not say it. half: see `hub.resolve`."""
    name = given.get("model")
    why = ""
    if name is None:
        there = hub.is_model(hub.WEIGHTS / "sd15")
        name, why = ("sd15", " as it is there") if there else ("bundled", " as SD-1.5 is not there: see `make weights`")
    return hub.resolve(name, half=half), why


def known_words(path: Path) -> KnownWords | None:
    try:
        return KnownWords.of(path)
    except InputError:  # somebody else's words.json
        return None


def advice(given: dict, like: str = "minipnp") -> Advice:
    """What the model advises, read before it is loaded. Other codebases have settings of their own, for any model."""
    here = given.get("model") in (None, "bundled", "sd15") or Path(given["model"]).is_dir()
    return advice_of(model_of(given)[0]) if here and like == "minipnp" else Advice()


def say_advice(advised: Advice, given: dict, log: Log, *settings: type[Options]) -> None:
    """Says which options of these classes the model's advice sets, other than their defaults, and why."""
    known = {o.name: o for s in settings for o in options_of(s)}
    chosen = {name: value for name, value in advised.options.items() if name in known and name not in given}
    used = {name: value for name, value in chosen.items() if known[name].take(value) != known[name].default}
    if used:
        values = ", ".join(f"{known[name].flag} {value}" for name, value in used.items())
        log.say(f"the model's advice: {values}{advised.why and f' ({advised.why})'}; options that are given win")


def warn_of_unknown_words(path: Path, given: dict, log: Log) -> None:
    known = known_words(path)
    change = [word for word in (given.get("change") or "").split("=") if not word.endswith(".txt")]
    said = [given.get("prompt") or [], given.get("source") or [], change]
    for text in [text for texts in said for text in ([texts] if isinstance(texts, str) else texts)]:
        if known and "{" not in text and _utf8(text) and (unknown := known.unknown(text)):
            log.note(f"{path.name} does not know {', '.join(unknown)}: `minipnp words` lists what its prompts may say")


def _utf8(text: str) -> bool:
    """If not, an error is to come that says more."""
    return text == text.encode(errors="ignore").decode()


def open_model(given: dict, log: Log) -> tuple[StableDiffusion, dict]:
    """The model, said and timed; and what decides its pictures, for the records."""
    device = pick_device(given.get("device"))
    dtype = pick_dtype(given.get("dtype"), device)
    path, why = model_of(given, half=dtype == torch.float16)
    log.say(f"model: {path}{why}; on {device} in {str(dtype).removeprefix('torch.')}")
    warn_of_unknown_words(path, given, log)
    with log.clock("load"):
        options = {"vae": given.get("vae"), "prediction": given.get("prediction_type"), "ema": given.get("ema")}
        fast = {name: given.get(name, False) for name in ("low_memory", "compile")}
        sd = minipnp.load(path, device=device, dtype=dtype, **options, **fast)
    with log.clock("checksums"):
        # How a sum is shared decides its last bits, and after many steps all of a picture.
        threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
        return sd, identity(sd, options["ema"]) | threads


def identity(sd: StableDiffusion, ema: bool | None = None) -> dict:
    """What decides a model's pictures. ema: which of a single file's two kinds of weights was asked for."""
    sizes = {network: asdict(config) for network, config in sd.source.configs.items()}
    return {
        "weights_sha256": {network: hub.sha256(file) for network, file in sd.source.files.items()},
        "sizes_sha256": hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest(),
        "prediction": sd.unet.config.prediction,
        "ema": ema,
        "low_memory": isinstance(sd, LowMemory),
        "device": sd.device.type,
        "dtype": str(sd.dtype).removeprefix("torch."),
        "minipnp": minipnp.__version__,
    }
