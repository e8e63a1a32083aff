"""Weights that must not load: each kind ends in one line that names the file and what it is."""

import json
import math
import os
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from stand_ins import (
    COMPONENTS,
    CPU,
    EMAONLY,
    FT_MSE,
    NAMES,
    PRUNED,
    SCHEDULER,
    SMALL,
    Tensors,
    header,
    load_small,
    published,
    random_states,
    refused,
    save_components,
    small,
    without,
    write,
)

import minipnp
from minipnp.files.loading import find_model, load_networks
from minipnp.files.tensors import TensorFile
from minipnp.weights import NETWORKS, finite


@pytest.fixture(scope="session")
def whole():
    """The tensors of v1-5-pruned-emaonly, in small."""
    return small(header(EMAONLY))


@pytest.fixture(scope="session")
def states():
    return random_states()


def refused_file(path: Path, *said: str) -> None:
    """As a model, as a VAE beside one, and when it is opened later on, by the same words."""
    model = write(path.parent / "model" / "m.safetensors", {"x": ("F32", [4])})
    refused(lambda: find_model(path), str(path), *said)
    refused(lambda: find_model(model, vae=path), str(path), *said)
    refused(lambda: TensorFile(path), str(path), *said)


# ---------------------------------------------------------------------------------------------------------------------
# No safetensors file, or no whole one.

BYTES = {
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:6ce016\nsize 42\n", "git-lfs pointer"),
    "page.safetensors": (b"\n <!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "web page"),
    "page2.safetensors": (b"<html>", "web page"),
    "error.safetensors": (b'{"error":"Repository not found"}', "no safetensors file"),
    "text.safetensors": (b"Access denied", "no safetensors file"),
    "zip.safetensors": (b"PK\x03\x04" + b"\0" * 100 + b"archive/data.pkl", "pickle under another name"),
    "old.safetensors": (b"\x80\x02}q\x00(X\x0a\x00\x00\x00state_dict", "pickle under another name"),
    "model.gguf": (b"GGUF\x03\0\0\0" + b"\0" * 100, "GGUF"),
    "empty.safetensors": (b"", "an empty file"),
    "short.safetensors": (b"abc", "no safetensors file"),
    "zeros.safetensors": (b"\0" * 1000, "no safetensors file"),
    "model.ckpt": (b"PK\x03\x04", "a pickle"),
    "diffusion_pytorch_model.bin": (b"PK\x03\x04", "a pickle"),
    "model.pt": (b"", "a pickle"),
    "model.pth": (b"", "a pickle"),
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_no_safetensors(tmp_path, name):
    content, kind = BYTES[name]
    (tmp_path / name).write_bytes(content)
    refused_file(tmp_path / name, kind)


@pytest.mark.parametrize("size", [9, 1000, 156452, 156452 + 1000, 4265146304 - 1])
def test_cut_short(tmp_path, size):
    path = published(tmp_path / EMAONLY, EMAONLY)
    os.truncate(path, size)
    refused_file(path, "cut short")


def test_longer_than_its_header_says(tmp_path):
    path = published(tmp_path / FT_MSE, FT_MSE)
    os.truncate(path, path.stat().st_size + 1)
    refused_file(path, "damaged")


def entry(**changes) -> dict:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


DAMAGED = {
    "no JSON": b'{"a": {"dtype": "F32", ',
    "binary": b"{" + bytes(range(256)),
    "nested": b'{"a":' + b"[" * 100_000,
    "a list": {"a": [1, 2]},
    "no offsets": {"a": {"dtype": "F32", "shape": [4]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    "no type": {"a": {"shape": [4], "data_offsets": [0, 16]}},
    "unknown type": {"a": entry(dtype="F33")},
    "one offset": {"a": entry(data_offsets=[0])},
    "offsets in words": {"a": entry(data_offsets=["0", "16"])},
    "negative offset": {"a": entry(data_offsets=[-16, 0])},
    "reversed offsets": {"a": entry(data_offsets=[16, 0])},
    "overlap": {"a": entry(), "b": entry(data_offsets=[8, 24])},
    "hole": {"a": entry(), "b": entry(data_offsets=[32, 48])},
    "more numbers than bytes": {"a": entry(shape=[5])},
    "negative size": {"a": entry(shape=[-4])},
    "size in words": {"a": entry(shape="4")},
    "metadata that is none": {"__metadata__": 5, "a": entry()},
    "twice the same": b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}",
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_header(tmp_path, kind):
    text = DAMAGED[kind] if isinstance(DAMAGED[kind], bytes) else json.dumps(DAMAGED[kind]).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 48)
    refused_file(path, "damaged")


@pytest.mark.parametrize("length, said", [(1000, "damaged"), (1_000_000, "damaged"), (1 << 63, "cut short")])
def test_damaged_length(tmp_path, length, said):
    path = published(tmp_path / FT_MSE, FT_MSE)
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", length))
    refused_file(path, said)


@pytest.mark.parametrize("method, name", [("open", "model.safetensors"), ("stat", "model.safetensors"),
                                          ("read_text", "config.json")])  # fmt: skip
def test_no_permission(tmp_path, states, monkeypatch, method, name):
    """Simulated: permissions do not bind an administrator, who may be running this."""
    folder, real = save_components(tmp_path, states), getattr(Path, method)

    def denied(self, *args, **kwargs):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, method, denied)
    refused(lambda: find_model(folder), name, "Permission denied")


def test_error_of_a_disk_while_reading(tmp_path, monkeypatch):
    """It comes without a file's name."""
    path = write(tmp_path / "m.safetensors", {"x": ("F32", [4])})

    def broken(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "stat", broken)
    refused(lambda: TensorFile(path), "cannot be read (Input/output error)")


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that are none.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("folder", ["unet", "vae", "text_encoder"])
def test_numbers_that_are_none(tmp_path, states, folder, value):
    """One of all, anywhere: each picture made with it would be rubbish."""
    name = [name for name, t in states[folder].items() if t.numel() > 100][3]
    spoilt = states[folder][name].clone()
    spoilt.view(-1)[77] = value
    model = save_components(tmp_path, states | {folder: states[folder] | {name: spoilt}})
    file = find_model(model).files[folder]
    opened = TensorFile(file)
    (there,) = (name for name in opened.names() if not opened.tensor(name).isfinite().all())
    for dtype in (torch.float32, torch.float16):
        refused(lambda dtype=dtype: list(load_networks(find_model(model), CPU, dtype)), str(file), there, "NaN")
    refused(lambda: minipnp.load(model, device="cpu"), str(file), there, "another copy")


def test_numbers_that_float16_cannot_hold(tmp_path, states):
    name = "time.fc1.weight"
    large = states["unet"][name] * 0 + 1e5
    model = save_components(tmp_path, states | {"unet": states["unet"] | {name: large}})
    refused(lambda: minipnp.load(model, device="cpu", dtype="float16"), "unet", "too large for float16", "--dtype")
    for dtype in ("float32", "bfloat16"):
        assert minipnp.load(model, device="cpu", dtype=dtype).unet.state_dict()[name].min() > 9e4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_place_of_a_tensor_is_looked_at(dtype):
    for n in (1, 7, 8, 33, 1000):
        for value in (math.nan, math.inf, -math.inf):
            for place in {0, n // 2, n - 1}:
                x = torch.linspace(-2, 2, n).to(dtype)
                assert finite(x)
                x[place] = value
                assert not finite(x), (n, value, place)


# ---------------------------------------------------------------------------------------------------------------------
# Another kind of model.

FOREIGN = {
    "LoRA": [
        ["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "lora_te_text_model_encoder_layers_0_mlp.alpha"],
        ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"],
        ["mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight"],
        ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight"],
        ["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"],  # LoHa
        ["lora_unet_mid_block_attentions_0_proj_in.lokr_w1"],
        ["lycoris_down_blocks_0_attentions_0_proj_in.lokr_w1"],
    ],
    "ControlNet": [
        ["control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"],
        ["conv_in.weight", "controlnet_cond_embedding.conv_in.weight", "controlnet_down_blocks.0.weight"],
    ],
    "textual inversion": [["emb_params"], ["string_to_param.*"]],
    "SDXL": [
        ["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"],
        ["model.diffusion_model.label_emb.0.0.weight"],
        ["add_embedding.linear_1.weight", "conv_in.weight"],
    ],
    "AltDiffusion": [["cond_stage_model.roberta.embeddings.word_embeddings.weight"]],
    "Stable Diffusion 2.x": [["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"]],
    "SD 3": [["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"]],
    "Flux": [
        ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
        ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"],
        ["transformer_blocks.0.norm1.linear.weight", "single_transformer_blocks.0.attn.to_q.weight"],
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind, names", [(kind, names) for kind, files in FOREIGN.items() for names in files])
def test_foreign_file(tmp_path, kind, names):
    refused_file(write(tmp_path / "m.safetensors", {name: ("F16", [8, 4]) for name in names}), kind)


ARCHITECTURES = {
    "stable-diffusion-xl-v1-base/vae": False, "stable-diffusion-v2-768-v": False, "stable-diffusion-3-medium": False,
    "flux-1-dev": False, "stable-diffusion-v1": True, "stable-diffusion-v1/vae": True, "Stable-Diffusion-v1-5": True,
    "SD 1.5": True, "": True,
}  # fmt: skip


@pytest.mark.parametrize("said", ARCHITECTURES)
def test_what_a_file_says_of_itself(tmp_path, said):
    """SDXL's VAE has the names and shapes of SD-1.x's: nothing else in the file tells."""
    path = write(tmp_path / "m.safetensors", {"x": ("F32", [4])}, metadata={"modelspec.architecture": said})
    if ARCHITECTURES[said]:
        assert TensorFile(path).names() == {"x"}
    else:
        refused_file(path, repr(said), "modelspec.architecture")


@pytest.mark.parametrize("kind", ["ControlNet", "SDXL", "AltDiffusion", "Stable Diffusion 2.x"])
def test_foreign_parts_in_a_whole_file(tmp_path, whole, kind):
    tensors = whole | {name: ("F16", [8, 4]) for name in FOREIGN[kind][0]}
    refused_file(write(tmp_path / "m.safetensors", tensors), kind)


def sd2(tensors: Tensors) -> Tensors:
    """The UNet of Stable Diffusion 2.x: texts of width 1024, linear proj_in and proj_out. No name differs."""
    changed = {}
    for name, (dtype, shape) in tensors.items():
        if re.search(r"attn2\.?to_[kv]\.?weight", name):
            shape = [shape[0], 1024]
        if re.search(r"proj_(in|out)\.?weight", name) and "first_stage" not in name:
            shape = shape[:2]
        changed[name] = (dtype, shape)
    return changed


@pytest.mark.parametrize("unet", ["single file", "averages", "component"])
def test_stable_diffusion_2_unet(tmp_path, unet):
    tensors = {
        "single file": without(header(EMAONLY), "^cond_stage_model"),
        "averages": without(header(PRUNED), "^(cond_stage_model|model)\\."),
        "component": header(COMPONENTS["unet/diffusion_pytorch_model.fp16.safetensors"]),
    }[unet]
    assert sum(a != b for a, b in zip(tensors.values(), sd2(tensors).values(), strict=True)) in (64, 128)
    refused_file(write(tmp_path / "m.safetensors", sd2(tensors)), "Stable Diffusion 2.x")


def test_stable_diffusion_2_text_encoder(tmp_path):
    sizes = {768: 1024, 3072: 4096}
    tensors = header(COMPONENTS["text_encoder/model.fp16.safetensors"])
    tensors = {name: (dtype, [sizes.get(n, n) for n in shape]) for name, (dtype, shape) in tensors.items()}
    refused_file(write(tmp_path / "m.safetensors", tensors), "Stable Diffusion 2.x")


def test_stable_diffusion_2_folder(tmp_path, states):
    """It is named by its tensors, and by its settings where those tell nothing."""
    unet = {"use_linear_projection": True, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}
    folder = save_components(tmp_path, states, unet=unet, text_encoder={"hidden_act": "gelu", "hidden_size": 1024})
    refused(lambda: find_model(folder), "not Stable Diffusion 1.x: use_linear_projection = True", str(folder / "unet"))
    tensors = sd2(header(COMPONENTS["unet/diffusion_pytorch_model.safetensors"]))
    write(folder / "unet" / "diffusion_pytorch_model.safetensors", tensors)
    refused(lambda: find_model(folder), "this is Stable Diffusion 2.x", str(folder / "unet"))


@pytest.mark.parametrize("channels, kind", [(9, "inpainting"), (8, "instructions")])
@pytest.mark.parametrize("unet", ["single file", "averages", "component"])
def test_other_inputs_of_the_unet(tmp_path, channels, kind, unet):
    """Inpainting models read a mask and a picture besides the latent, instruct-pix2pix a picture."""
    tensors, name = {
        "single file": (header(EMAONLY), "model.diffusion_model.input_blocks.0.0.weight"),
        "averages": (without(header(PRUNED), r"^model\."), "model_ema.diffusion_modelinput_blocks00weight"),
        "component": (header(COMPONENTS["unet/diffusion_pytorch_model.safetensors"]), "conv_in.weight"),
    }[unet]
    assert tensors[name][1] == [320, 4, 3, 3]
    path = write(tmp_path / "m.safetensors", tensors | {name: ("F32", [320, channels, 3, 3])})
    refused_file(path, kind, f"{channels} input channels")


# ---------------------------------------------------------------------------------------------------------------------
# A model of this kind, of which something is missing, too much or of another shape.


@pytest.mark.parametrize("line", [0, 500, 700, 1000])
def test_missing_tensor(tmp_path, whole, line):
    name = NAMES[line][0]
    path = write(tmp_path / "m.safetensors", without(whole, f"^{re.escape(name)}$"))
    refused(lambda: load_small(path), str(path), "1 tensors of its", "missing", name)


def test_missing_tensor_of_a_vae_says_the_remedy(tmp_path, whole):
    path = write(tmp_path / "m.safetensors", without(whole, "^first_stage_model.decoder"))
    refused(lambda: load_small(path), "138 tensors of its VAE are missing", "--vae")


def test_a_network_that_is_there_twice_under_unusual_prefixes(tmp_path, whole):
    vae = without(whole, "^(?!first_stage_model)")
    rest = without(whole, "^first_stage_model")
    two = {name.replace("first_stage_model", prefix): t for prefix in ("mine", "old") for name, t in vae.items()}
    path = write(tmp_path / "m.safetensors", rest | two)
    refused(lambda: load_small(path), "no VAE in it", "--vae")


@pytest.mark.parametrize("name", [
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn3.to_q.weight",
    "model.diffusion_model.position_ids",
    "first_stage_model.encoder.mid.attn_2.q.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.12.mlp.fc1.weight",
])  # fmt: skip
def test_tensor_too_much(tmp_path, whole, name):
    """Inside a network's prefix: another kind of network. (Beside the networks: a warning, see test_weights.py.)"""
    path = write(tmp_path / "m.safetensors", whole | {name: ("F32", [8])})
    refused(lambda: load_small(path), str(path), "it has 1 more", name)


def test_missing_networks(tmp_path, whole):
    path = tmp_path / "m.safetensors"
    for prefix, *said in (
        (r"first_stage_model\.", "no VAE", "--vae"),
        (r"cond_stage_model\.", "no text encoder", "complete file"),
        (r"model\.", "no UNet", "whole model"),
    ):
        write(path, without(whole, f"^{prefix}"))
        refused(lambda: load_small(path), str(path), *said)
    for tensors in ({}, {"<my-cat>": ("F32", [768])}):
        write(path, tensors)
        refused(lambda: load_small(path), str(path), "no UNet")


def test_file_of_one_network_as_a_model(tmp_path):
    files = [file for file in COMPONENTS if "fp16" in file]
    for file, missing in zip(files, ["VAE", "UNet", "UNet"], strict=True):
        path = published(tmp_path / "m.safetensors", COMPONENTS[file])
        refused(lambda path=path: list(load_networks(find_model(path), CPU, torch.float32)), f"no {missing} in it")


def test_averages_do_not_fill_in_for_missing_weights(tmp_path):
    lost = "model.diffusion_model.out.2.bias"
    path = write(tmp_path / "m.safetensors", without(small(header(PRUNED)), f"^{re.escape(lost)}$"))
    refused(lambda: load_small(path), "1 tensors of its UNet are missing", lost)
    path = write(tmp_path / "m.safetensors", without(small(header(PRUNED)), r"^model\.diffusion_model\."))
    refused(lambda: load_small(path, ema=False), "no UNet in it")


def test_averages_that_are_asked_for_and_not_there(tmp_path, whole):
    path = write(tmp_path / "m.safetensors", whole)
    refused(lambda: load_small(path, ema=True), "no averaged (EMA) UNet", "--ema")
    lost = "model_ema.diffusion_modelout2bias"
    path = write(tmp_path / "m.safetensors", without(small(header(PRUNED)), lost))
    refused(lambda: load_small(path, ema=True), "1 tensors of its averaged (EMA) UNet are missing", lost)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "U8", "I32"])
def test_types_that_are_no_weights(tmp_path, whole, dtype):
    """float8 and quantised files need scales that are not read here."""
    name = "model.diffusion_model.out.2.weight"
    path = write(tmp_path / "m.safetensors", whole | {name: (dtype, whole[name][1])})
    refused(lambda: load_small(path), str(path), name, dtype)


@pytest.mark.parametrize("name, stored, ours", [
    ("input_blocks.1.1.proj_in.weight", [32, 32], [32, 32, 1, 1]),
    ("input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", [32, 32, 1, 1], [32, 32]),
])  # fmt: skip
def test_linear_layer_for_a_convolution(tmp_path, whole, name, stored, ours):
    """The same numbers in another shape are let pass in the VAE's attention only, where they are published so."""
    path = write(tmp_path / "m.safetensors", whole | {f"model.diffusion_model.{name}": ("F32", stored)})
    refused(lambda: load_small(path), name, f"has the shape {stored}, the UNet {ours}")


def test_another_size_without_its_settings(tmp_path, whole, states):
    path = write(tmp_path / "m.safetensors", whole)
    refused(
        lambda: list(load_networks(find_model(path), CPU, torch.float32)), str(path), "has the shape", "config.json"
    )
    folder = save_components(tmp_path / "model", states)
    (folder / "vae" / "config.json").unlink()
    refused(lambda: list(load_networks(find_model(folder), CPU, torch.float32)), str(folder / "vae"), "VAE are missing")


def test_all_is_known_before_a_tensor_is_read(tmp_path, whole, monkeypatch):
    path = write(tmp_path / "m.safetensors", without(whole, "^cond_stage_model"))
    monkeypatch.setattr(TensorFile, "tensor", lambda *_: pytest.fail("read a tensor"))
    refused(lambda: load_small(path), "no text encoder")


# ---------------------------------------------------------------------------------------------------------------------
# Folders and paths.


def test_no_such_path(tmp_path):
    refused(lambda: find_model(tmp_path / "nowhere"), "no such file or folder", str(tmp_path / "nowhere"))
    refused(lambda: find_model(Path("a\0b")), "no such file or folder")
    refused(lambda: find_model(Path("a" * 300)), "a" * 300, "too long")


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.folder)
def test_missing_component(tmp_path, states, network):
    folder = save_components(tmp_path, states)
    weights = folder / network.folder / f"{network.file}.safetensors"
    weights.unlink()
    refused(lambda: find_model(folder), f"the {network.name} is missing", str(weights))
    pickle = weights.with_suffix(".bin")
    pickle.write_bytes(b"PK\x03\x04")
    refused(lambda: find_model(folder), network.name, "only as a pickle", pickle.name)
    weights.mkdir()
    refused(lambda: find_model(folder), str(weights), "cannot be read")


PARTS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize("names, said", [
    (["diffusion_pytorch_model.ema_only.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], "which of these"),
    (PARTS, "one of 2 parts"), (PARTS[1:], "one of 2 parts"),
])  # fmt: skip
def test_files_of_a_network_of_which_none_is_the_one(tmp_path, states, names, said):
    folder = save_components(tmp_path, states)
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for name in names:
        shutil.copy(plain, folder / "unet" / name)
    (folder / "unet" / f"{plain.name}.index.json").write_text("{}")
    find_model(folder)  # the usual name is there too
    plain.unlink()
    refused(lambda: find_model(folder), str(folder), *names[:1], said)


def test_a_part_as_the_model(tmp_path, states):
    (tmp_path / "m-00001-of-00003.safetensors").write_bytes(b"")
    refused(lambda: find_model(tmp_path / "m-00001-of-00003.safetensors"), "one of 3 parts", "max_shard_size")


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "text_encoder/config.json",
                                  "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors",
                                  "vae/diffusion_pytorch_model.safetensors"])  # fmt: skip
def test_a_link_that_leads_nowhere(tmp_path, states, file):
    """As in a hub's cache whose blobs were removed. The defaults of SD-1.x do not take the place of what it meant."""
    link = save_components(tmp_path, states, scheduler=SCHEDULER) / file
    link.unlink()
    link.symlink_to("../../blobs/0123abcd")
    refused(lambda: find_model(tmp_path), str(link), "a link to ../../blobs/0123abcd, which is not there", "fetch")


def test_a_model_or_vae_that_is_a_link_to_nowhere(tmp_path, states):
    (tmp_path / "m.safetensors").symlink_to("gone")
    model = save_components(tmp_path / "model", states)
    refused(lambda: find_model(tmp_path / "m.safetensors"), "a link to gone")
    refused(lambda: find_model(model, vae=tmp_path / "m.safetensors"), "a link to gone")


def test_folder_without_components(tmp_path, whole):
    refused(
        lambda: find_model(tmp_path),
        "the UNet is missing",
        str(tmp_path / "unet" / "diffusion_pytorch_model.safetensors"),
    )
    path = write(tmp_path / "v1-5.safetensors", whole)
    refused(lambda: find_model(tmp_path), "the UNet is missing", f"or give {path}")


def test_vae_that_is_not_there(tmp_path, states):
    folder = save_components(tmp_path / "model", states)
    (tmp_path / "empty").mkdir()
    refused(lambda: find_model(folder, vae=tmp_path / "empty"), str(tmp_path / "empty"), "the VAE is missing")
    refused(lambda: find_model(folder, vae=tmp_path / "nowhere"), str(tmp_path / "nowhere"), "No such file")


@pytest.mark.parametrize("change", [{"scaling_factor": 0.13025}, {"block_out_channels": [8, 16, 16]}], ids=str)
def test_vae_of_another_kind(tmp_path, states, change):
    """SDXL's VAE has the names and shapes of SD-1.x's, but other latents: the scale tells."""
    folder = save_components(tmp_path / "model", states)
    other = save_components(tmp_path / "other", states, vae=change)
    refused(lambda: find_model(folder, vae=other / "vae"), str(other / "vae"), "another kind of model", "0.5")


def test_parts_of_different_models(tmp_path, states):
    folder = save_components(tmp_path, states, text_encoder={"hidden_size": 32})
    refused(lambda: find_model(folder), str(folder), "text encoder is 32 wide", "16")


def test_small_names_are_the_same():
    """The stand-ins in small are refused for what is done to them here, not for their sizes."""
    assert small(header(EMAONLY)).keys() == header(EMAONLY).keys() and SMALL.keys() == {n.folder for n in NETWORKS}
