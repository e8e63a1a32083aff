"""Step 6: the model as SD-1.x models are published: half precision, component layout, one config.json a network.

→ weights/bundled: unet, vae, text_encoder, the classifier, words.json, training.json, LICENCES.md
"""

import argparse
import json
from filecmp import cmp
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save as serialised
from torch import Tensor

from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.errors import InputError
from minipnp.files.atomic import atomic, write_text_atomic
from minipnp.files.loading import find_model, load_networks
from minipnp.measure.icons import Classifier, Vocabulary
from minipnp.weights import (
    AUTOENCODER,
    TEXT,
    TEXT_ENCODER,
    UNET,
    UNET_COMPONENT,
    VAE_COMPONENT,
    Network,
    Rules,
    published_name,
)
from tools.bundled import run
from tools.bundled.captions import TEMPLATE
from tools.bundled.concepts import (
    COLOURS,
    CONCEPTS,
    FINISHED_CONCEPTS,
    FINISHED_STYLES,
    HELD_OUT_CONCEPTS,
    HELD_OUT_STYLE,
    STYLES,
)
from tools.bundled.fetch import DATA
from tools.bundled.train_unet import every_token
from tools.bundled.training import FINISHED, WORK, State, need, read

FOLDER = Path("weights/bundled")
ADVICE = {  # see minipnp/advice.py
    "options": {"scale": 3.0, "f_layers": "7"},  # at 7.5, which suits SD-1.5, shapes of this model come apart
    "layer": 7,
    "share": 1.0,  # where its maps of words find the object: docs/bundled.md
    "why": "its layers 6 to 8 have 16 x 16 cells, as layers 3 to 5 have in Stable Diffusion",
}
LIMIT = 40_000_000  # bytes, of all weights
LAYOUTS: dict[str, tuple[Network, str, Rules]] = {
    "unet": (UNET, "", UNET_COMPONENT),
    "vae": (AUTOENCODER, "", VAE_COMPONENT),
    "text_encoder": (TEXT_ENCODER, "text_model.", TEXT),
}


def unet_config(c: UNetConfig) -> dict:
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": c.heads,  # the layout's historical name for the number of heads
        "block_out_channels": list(c.channels),
        "cross_attention_dim": c.context,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 2,
        "norm_eps": 1e-5,
        "norm_num_groups": c.groups,
        "out_channels": 4,
        "sample_size": c.size,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }


def vae_config(c: VAEConfig, size: int) -> dict:
    levels = len(c.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(c.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": c.latent_channels,
        "layers_per_block": c.blocks,
        "norm_num_groups": c.groups,
        "out_channels": 3,
        "sample_size": size,
        "scaling_factor": c.scale,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_config(c: TextConfig) -> dict:
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "hidden_act": "quick_gelu",
        "hidden_size": c.width,
        "intermediate_size": c.mlp,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": c.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": c.heads,
        "num_hidden_layers": c.layers,
        "projection_dim": c.width,
        "vocab_size": c.vocabulary,
    }


def words() -> dict:
    """What its prompts may say, for whoever writes them."""
    return {
        "template": TEMPLATE,
        "styles": FINISHED_STYLES,
        "concepts": FINISHED_CONCEPTS,
        "categories": {c.words: c.category for c in CONCEPTS if c.words in FINISHED_CONCEPTS},
        "colours": list(COLOURS),
        "advice": ADVICE,
        "held_out": {"style": HELD_OUT_STYLE, "concepts": HELD_OUT_CONCEPTS},
    }


def licences(sets: list[dict[str, str]]) -> str:
    styles = dict(zip((f"@iconify-json/{name}" for name in STYLES), STYLES.values(), strict=True))
    rows = [
        f"| {styles[s['set']]} | [{s['title']}]({s['source']}) | {s['author']} "
        f"| [{s['licence']}]({s['licence_text']}) | `{s['set']}` {s['version']} |"
        for s in sets
    ]
    return (
        "# What the weights were trained on\n\nDrawings of icons on coloured backgrounds, changed in size and place. "
        f"None of the sets is share-alike.\nThe style `{HELD_OUT_STYLE}` was held back, for the evaluation.\n\n"
        "| style | icon set | by | licence | npm package |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def half(weights: dict[str, Tensor], prefix: str = "", rules: Rules = ()) -> dict[str, Tensor]:
    return {prefix + published_name(name, rules): x.to(torch.float16).contiguous() for name, x in weights.items()}


def save(weights: dict[str, Tensor], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic(place) as temporary:
        temporary.write_bytes(serialised(weights, metadata={"format": "pt"}))


def save_json(content: dict, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(json.dumps(content, ensure_ascii=False, indent=1) + "\n", place)


def export_classifier(state: State, folder: Path) -> None:
    """What `minipnp.measure.icons.load` reads."""
    save(half(state.average), folder / "model.safetensors")
    words = Vocabulary(*map(tuple, state.about["words"]))
    save_json(Classifier(words, state.about["size"], tuple(state.about["channels"])).config, folder / "config.json")


def part(state: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in state.average.items() if name.startswith(prefix)}


def export(work: Path, data: Path, folder: Path) -> int:
    """Puts the running averages of all networks into `folder`, once they are whole. → bytes of all weights.

    An evaluation of other weights is removed there. InputError: see `write`; what is in `folder` stays then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=folder.parent) as made:
        size = write(work, data, Path(made))
        for new in [file for file in Path(made).rglob("*") if file.is_file()]:
            place = folder / new.relative_to(made)
            place.parent.mkdir(parents=True, exist_ok=True)
            if new.suffix == ".safetensors" and not (place.exists() and cmp(new, place, shallow=False)):
                (folder / "EVALUATION.md").unlink(missing_ok=True)
            new.replace(place)
    return size


def write(work: Path, data: Path, folder: Path) -> int:
    """Writes all to an empty folder and reads it back. → bytes of all weights.

    InputError: a step before this one is missing, or the weights are over LIMIT.
    """
    vae, classifier = need(work, "vae"), need(work, "classifier")
    both = read(work, f"unet-{FINISHED}") or need(work, "unet")
    if "used" not in both.average:
        raise InputError(f"{work / 'unet.pt'}: of an earlier recipe, which embedded every token; train it again")
    vocabulary = both.about["text"]["vocabulary"]
    text_encoder = every_token(part(both, "text_encoder."), both.average["used"], vocabulary)
    weights = {"unet": part(both, "unet."), "vae": vae.average, "text_encoder": text_encoder}
    for name, (network, prefix, rules) in LAYOUTS.items():
        save(half(weights[name], prefix, rules), folder / network.folder / f"{network.file}.safetensors")
    save_json(unet_config(UNetConfig(**both.about["unet"])), folder / "unet" / "config.json")
    config = VAEConfig(**{**vae.about["vae"], "scale": vae.scale})
    save_json(vae_config(config, both.about["size"]), folder / "vae" / "config.json")
    save_json(text_config(TextConfig(**both.about["text"])), folder / "text_encoder" / "config.json")
    export_classifier(classifier, folder / "classifier")
    save_json(words(), folder / "words.json")
    trained = {name: {"about": state.about, "plan": state.plan, "step": state.step, "steps": state.steps}
               for name, state in (("vae", vae), ("unet", both), ("classifier", classifier))}  # fmt: skip
    save_json(trained, folder / "training.json")
    sets = json.loads((data / "licences.json").read_text(encoding="utf-8"))
    write_text_atomic(licences(sets), folder / "LICENCES.md")

    for name, network in zip(
        weights, load_networks(find_model(folder), torch.device("cpu"), torch.float32), strict=True
    ):
        for key, x in network.state_dict().items():
            if not torch.equal(x, weights[name][key].to(torch.float16).float().cpu()):
                raise RuntimeError(f"{name}: {key} is read back as something else")
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    if size > LIMIT:
        raise InputError(f"{size:,} bytes of weights, over {LIMIT:,}: give smaller --channels or --width")
    return size


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--to", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    print(f"{export(args.work, args.data, args.to):,} bytes")


if __name__ == "__main__":
    run(main)
