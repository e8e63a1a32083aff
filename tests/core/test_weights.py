"""Weights that load: every published layout, and the variants of the community, tensor by tensor.

What must not load is in test_refused.py, the settings are in test_config.py, the stand-ins in stand_ins.py.
"""

import gc
import json
import math
import re
import shutil
import struct
import warnings
from pathlib import Path

import pytest
import torch
from stand_ins import (
    COMPONENT,
    COMPONENTS,
    CPU,
    EMA,
    EMAONLY,
    FT_MSE,
    MARK,
    NAMES,
    PRUNED,
    SCHEDULER,
    SINGLE,
    SINGLE_FILE,
    SIZES,
    SMALL,
    TINY,
    header,
    load_small,
    mapped_states,
    mark_of,
    published,
    random_states,
    read_mark,
    refused,
    renamed,
    save_components,
    save_single,
    small,
    without,
    write,
)

import minipnp
from minipnp.config import VAEConfig
from minipnp.ddim import ALPHA_BAR
from minipnp.files.loading import find_model, load_networks
from minipnp.files.tensors import TensorFile
from minipnp.model import Source
from minipnp.weights import (
    AUTOENCODER,
    NETWORKS,
    TEXT_ENCODER,
    UNET,
    UNET_COMPONENT,
    UNET_EMA,
    UNET_SINGLE_FILE,
    VAE_COMPONENT,
    VAE_SINGLE_FILE,
    load_network,
    published_name,
)

PREFIX = {network.folder: network.prefixes[0] for network in NETWORKS}  # in the single-file layout
# Tensors and parameters; position_ids, the 197th of the text encoder, is neither.
COUNTS = {"unet": (686, 859_520_964), "vae": (248, 83_653_863), "text_encoder": (196, 123_060_480)}
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def own_shapes(network, config=None) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {name: list(t.shape) for name, t in network.build(config or network.config()).state_dict().items()}


# Own name → mark, by folder; test_names_are_the_published_ones proves the tables that this rests on.
TRUTH = {
    network.folder: {
        name: MARK.get(PREFIX[network.folder] + published_name(name, SINGLE_FILE[network.folder]), -1)
        for name in own_shapes(network, SMALL[network.folder])
    }
    for network in NETWORKS
}


def check(module: torch.nn.Module, folder: str, dtype=torch.float32, shift: int = 0) -> None:
    """Each tensor came from its own place, and the network is ready for use."""
    state = module.state_dict()
    assert {name: read_mark(t) for name, t in state.items()} == {name: m + shift for name, m in TRUTH[folder].items()}
    assert not module.training
    assert not list(module.buffers())
    for name, tensor in module.named_parameters():
        assert tensor.device == CPU and tensor.dtype == dtype and not tensor.requires_grad, name
        assert tensor.data_ptr() % tensor.element_size() == 0, f"{name} is misaligned"
        assert tensor.is_contiguous(), name


def check_small(networks: list[torch.nn.Module], dtype=torch.float32, unet: int = 0, vae: int = 0) -> None:
    """unet, vae: how far their marks are shifted."""
    for folder, module in zip(SMALL, networks, strict=True):
        check(module, folder, dtype, {"unet": unet, "vae": vae}.get(folder, 0))


def check_one(network, path: Path, shift: int = 0) -> None:
    """That network of a file in small."""
    check(
        load_network(network, TensorFile(path), SMALL[network.folder], CPU, torch.float32), network.folder, shift=shift
    )


@pytest.fixture(scope="session")
def whole():
    """The tensors of v1-5-pruned-emaonly, in small."""
    return small(header(EMAONLY))


@pytest.fixture(scope="session")
def states():
    """The numbers of a tiny random model."""
    return random_states()


@pytest.fixture
def in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Names.


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.folder)
def test_names_are_the_published_ones(network):
    """Own name → single file → component: against the headers, and the pairs of diffusers' own converter."""
    folder, shapes = network.folder, own_shapes(network)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == COUNTS[folder]
    single, component = header(EMAONLY), header(f"{folder}__{network.file}.fp16.safetensors")
    theirs = {name for name in single if name.startswith(PREFIX[folder])} - {POSITION_IDS}
    assert {PREFIX[folder] + published_name(name, SINGLE_FILE[folder]) for name in shapes} == theirs
    for name, shape in shapes.items():
        there = PREFIX[folder] + published_name(name, SINGLE_FILE[folder])
        paired = published_name(name, COMPONENT[folder])
        assert SINGLE[there] == f"{folder}/{paired}"
        assert component[paired][1] == shape
        # In the VAE's attention the single file has 1×1 convolutions for the same numbers.
        assert single[there][1] == (shape + [1, 1] if ".attn." in name and name.endswith("weight") and folder == "vae"
                                    and ".norm." not in name else shape)  # fmt: skip


def test_contents_of_the_single_file():
    """1145 tensors: 1131 of the three networks, 12 of the schedule, 2 counters of the averages."""
    single = header(EMAONLY)
    rest = set(single) - set(SINGLE)
    assert (len(single), len(SINGLE), len(rest)) == (1145, 1131, 14)
    assert rest - {"model_ema.decay", "model_ema.num_updates"} == {n for n in rest if single[n] == ("F32", [1000])}
    assert [sum(name.startswith(prefix) for name in single) for prefix in PREFIX.values()] == [686, 248, 197]


def test_names_of_the_averages():
    """The 686 EMA names, of which the dots are dropped, against those in v1-5-pruned."""
    (prefix,), (rules,) = UNET_EMA.prefixes, UNET_EMA.tables
    ours = {
        PREFIX["unet"] + published_name(n, UNET_SINGLE_FILE): prefix + published_name(n, rules) for n in TRUTH["unet"]
    }
    assert ours == EMA
    assert set(ours.values()) == {name for name in header(PRUNED) if name.startswith("model_ema.diffusion_model")}


@pytest.mark.parametrize("own, rules, there", [
    ("decoder.4.res.conv2.weight", UNET_SINGLE_FILE, "output_blocks.4.0.out_layers.3.weight"),  # the paper's f
    ("decoder.4.res.conv2.weight", UNET_COMPONENT, "up_blocks.1.resnets.1.conv2.weight"),
    ("decoder.11.transformer.self_attn.q.weight", UNET_COMPONENT,
     "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_q.weight"),
    ("decoder.2.up.conv.weight", UNET_SINGLE_FILE, "output_blocks.2.1.conv.weight"),  # index 1 only here
    ("decoder.5.up.conv.weight", UNET_SINGLE_FILE, "output_blocks.5.2.conv.weight"),
    ("encoder.3.down.weight", UNET_COMPONENT, "down_blocks.0.downsamplers.0.conv.weight"),
    ("decoder.levels.0.res.0.conv1.weight", VAE_SINGLE_FILE, "decoder.up.3.block.0.conv1.weight"),  # reversed
    ("decoder.levels.0.res.0.conv1.weight", VAE_COMPONENT, "decoder.up_blocks.0.resnets.0.conv1.weight"),
])  # fmt: skip
def test_names_where_other_maps_fail(own, rules, there):
    assert published_name(own, rules) == there


# ---------------------------------------------------------------------------------------------------------------------
# The published files of SD-1.5, at full size.


def in_mapping(module: torch.nn.Module, path: Path) -> set[str]:
    """The names of the tensors that lie in the mapping of the file, not in memory of their own."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's list of mappings")
    spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(str(path))]
    inside = [range(int(low, 16), int(high, 16)) for low, high in spans]
    return {name for name, t in module.state_dict().items() if any(t.data_ptr() in span for span in inside)}


def test_single_file_is_mapped(tmp_path):
    """v1-5-pruned-emaonly, 4.3 GB: all tensors of the networks are aligned, so none of them is copied."""
    path = published(tmp_path / EMAONLY, EMAONLY)
    assert path.stat().st_size == SIZES[EMAONLY]
    networks = load_networks(find_model(path), CPU, torch.float32)
    for (folder, counts), module in zip(COUNTS.items(), networks, strict=True):
        check(module, folder)
        assert (len(module.state_dict()), sum(p.numel() for p in module.parameters())) == counts
        assert in_mapping(module, path) == set(module.state_dict())


COPIED = "text_encoder/model.safetensors"  # its numbers begin at 2 mod 4


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=pytest.mark.full if file == COPIED else ()) for file in COMPONENTS]
)
def test_component_file(tmp_path, file):
    """Each published file of the component layout, in its own type: mapped where it is aligned, else copied."""
    network = next(network for network in NETWORKS if file.startswith(f"{network.folder}/"))
    path = published(tmp_path / file, COMPONENTS[file])
    assert path.stat().st_size == SIZES[COMPONENTS[file]]
    dtype = torch.float16 if "fp16" in file else torch.float32
    module = load_network(network, TensorFile(path), network.config(), CPU, dtype)
    check(module, network.folder, dtype)
    assert in_mapping(module, path) == (set() if file == COPIED else set(module.state_dict()))


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.full)])
def test_separate_vae_file(tmp_path, size):
    """vae-ft-mse: names without prefix, counters of an average beside them, misaligned throughout."""
    if size == "full":
        path = published(tmp_path / FT_MSE, FT_MSE)
        assert path.stat().st_size == SIZES[FT_MSE]
    else:
        path = write(tmp_path / FT_MSE, small(header(FT_MSE)), padding=2)
    config = VAEConfig() if size == "full" else SMALL["vae"]
    module = load_network(AUTOENCODER, TensorFile(path), config, CPU, torch.float32)
    check(module, "vae")
    assert not in_mapping(module, path)


@pytest.mark.full
@pytest.mark.parametrize("ema", [None, True])
def test_file_with_averages(tmp_path, ema):
    """v1-5-pruned, 7.7 GB: misaligned throughout; the plain weights unless the averages are asked for."""
    path = published(tmp_path / PRUNED, PRUNED)
    assert path.stat().st_size == SIZES[PRUNED]
    for folder, module in zip(COUNTS, load_networks(find_model(path), CPU, torch.float32, ema), strict=True):
        check(module, folder, shift=2000 if ema and folder == "unet" else 0)


@pytest.mark.full
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_component_folder(tmp_path, stored, wanted):
    """The folder as published, from its fp32 or fp16 files into each type."""
    for file, name in COMPONENTS.items():
        if ("fp16" in file) == (stored == "fp16"):
            published(tmp_path / file, name)
    for folder, module in zip(COUNTS, load_networks(find_model(tmp_path), CPU, wanted), strict=True):
        check(module, folder, wanted)


@pytest.mark.full
def test_bfloat16_file(tmp_path):
    """A single file in bfloat16 into float32."""
    tensors = {name: ("BF16" if dtype == "F32" else dtype, shape) for name, (dtype, shape) in header(EMAONLY).items()}
    path = write(tmp_path / "model.safetensors", tensors)
    for folder, module in zip(COUNTS, load_networks(find_model(path), CPU, torch.float32), strict=True):
        check(module, folder)


# ---------------------------------------------------------------------------------------------------------------------
# Variants, in small.


@pytest.mark.parametrize("stored", ["F64", "F16", "BF16"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16], ids=str)
def test_types_of_a_single_file(tmp_path, whole, stored, wanted):
    tensors = {name: (stored if dtype == "F32" else dtype, shape) for name, (dtype, shape) in whole.items()}
    check_small(load_small(write(tmp_path / "m.safetensors", tensors), wanted), wanted)


@pytest.mark.parametrize("padding", [1, 2, 4, 1001])
def test_header_of_any_length(tmp_path, whole, padding):
    """Trailing spaces; the numbers may begin anywhere, then each tensor is copied to an aligned place."""
    check_small(load_small(write(tmp_path / "m.safetensors", whole, padding=padding)))


@pytest.mark.parametrize("low", [0x3C, 0x80, 0x20, 0x0A], ids=hex)
def test_header_length_that_looks_like_another_file(tmp_path, whole, low):
    """The first byte is the lowest of the length: it may be a '<', a pickle's 0x80 or blank."""
    path = write(tmp_path / "m.safetensors", whole)
    (length,) = struct.unpack("<Q", path.open("rb").read(8))
    path = write(path, whole, padding=(low - length) % 256)
    assert path.open("rb").read(1)[0] == low
    check_one(TEXT_ENCODER, path)


@pytest.mark.parametrize("metadata", [{}, {"format": "tf"}, {"workflow": "x" * 2_000_000}, {"ss_tag": 'é \n "{'}],
                         ids=["empty", "foreign", "long", "odd"])  # fmt: skip
def test_metadata_does_not_matter(tmp_path, whole, metadata):
    """Nor does its absence, as in the other tests."""
    check_one(TEXT_ENCODER, write(tmp_path / "m.safetensors", whole, metadata=metadata))


@pytest.mark.parametrize("ids", ["I64", "F16", "F32", "damaged", "absent"])
@pytest.mark.parametrize("prefix", ["text_model.", ""], ids=["CLIP", "NovelAI"])
def test_text_encoder_of_a_single_file(tmp_path, whole, ids, prefix):
    """Both names of it; position_ids stored in any type and shape, or not at all."""
    tensors = without(whole, "position_ids")
    if ids != "absent":
        tensors[POSITION_IDS] = ("F32", [3]) if ids == "damaged" else (ids, [1, 77])
    tensors, marks = renamed(tensors, r"transformer\.text_model\.", f"transformer.{prefix}")
    check_one(TEXT_ENCODER, write(tmp_path / "m.safetensors", tensors, marks))


def test_novelai_file(tmp_path, whole, in_silence):
    path = write(tmp_path / "m.safetensors", *renamed(whole, r"transformer\.text_model\.", "transformer."))
    check_small(load_small(path))


@pytest.mark.parametrize("names", ["as published", "of transformers 5"])
def test_text_encoder_of_a_component(tmp_path, names):
    """transformers 5 has dropped `text_model.` and position_ids; CLIPTextModelWithProjection has one tensor more."""
    tensors = small(header("text_encoder__model.safetensors"))
    if names == "of transformers 5":
        tensors, marks = renamed(without(tensors, "position_ids"), "^text_model.", "")
    else:
        tensors, marks = renamed(tensors, "^", "")
    tensors["text_projection.weight"] = ("F32", [48, 48])
    check_one(TEXT_ENCODER, write(tmp_path / "m.safetensors", tensors, marks))


MID = r"(decoder|encoder)\.mid\.attn_1\."


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae.", "model.", "module.first_stage_model."])
@pytest.mark.parametrize("layout", ["single file", "new single file", "mixed", "component", "old component"])
def test_vae_file(tmp_path, whole, prefix, layout):
    """All the names that files of a VAE have. mixed: of the two attentions each in its own way."""
    if layout in ("single file", "new single file", "mixed"):
        tensors, marks = renamed(without(whole, "^(?!first_stage_model)"), "^first_stage_model.", prefix)
        extras = {"loss.logvar": ("F32", []), "loss.perceptual_loss.net.weight": ("F32", [4]),
                  "model_ema.decay": ("F32", []), "model_ema.num_updates": ("I32", [])}  # fmt: skip
        if layout != "single file":
            mid = MID if layout == "new single file" else MID.replace("encoder", "none")
            new = {name: re.sub(f"({mid})([qkv])\\.", r"\1to_\3.", name) for name in tensors}
            new = {name: re.sub(f"({mid})proj_out\\.", r"\1to_out.0.", there) for name, there in new.items()}
            assert sum(name != there for name, there in new.items()) == (16 if layout == "new single file" else 8)
            tensors = {new[name]: t for name, t in tensors.items()}
            marks = {new[name]: mark for name, mark in marks.items() if name in new}
    else:
        file = COMPONENTS[f"vae/diffusion_pytorch_model{'.fp16' if layout == 'component' else ''}.safetensors"]
        marks = {prefix + name: mark_of(name, "vae") for name in header(file)}
        tensors, extras = {prefix + name: ("F32", shape) for name, (_, shape) in small(header(file)).items()}, {}
    tensors |= {prefix + name: tensor for name, tensor in extras.items()}
    check_one(AUTOENCODER, write(tmp_path / "vae.safetensors", tensors, marks))


@pytest.mark.parametrize("own", ["with a VAE", "without"])
def test_vae_from_another_whole_file(tmp_path, whole, own, in_silence):
    """--vae may name a whole checkpoint, of which only the VAE is looked at. It takes the place of the model's own."""
    path = write(tmp_path / "m.safetensors", without(whole, "^first_stage_model") if own == "without" else whole)
    marks = {name: None if mark_of(name) is None else mark_of(name) + 1000 for name in whole}
    other = write(tmp_path / "other.safetensors", without(whole, "^cond_stage_model"), marks)
    check_small(load_small(path, vae=other), vae=1000)


@pytest.mark.parametrize("ema", [None, False, True])
def test_plain_weights_and_averages(tmp_path, ema):
    path = write(tmp_path / "m.safetensors", small(header(PRUNED)), padding=2)
    check_small(load_small(path, ema=ema), unet=2000 if ema else 0)


@pytest.mark.parametrize("ema", [None, True])
def test_averages_alone(tmp_path, ema):
    tensors = without(small(header(PRUNED)), r"^model\.diffusion_model\.")
    check_small(load_small(write(tmp_path / "m.safetensors", tensors), ema=ema), unet=2000)


@pytest.mark.parametrize("prefix", ["", "unet.", "model.", "module.model.diffusion_model."])
def test_unet_with_another_prefix_or_none(tmp_path, whole, prefix):
    tensors = without(whole, r"^(?!model\.diffusion_model\.)")
    check_one(UNET, write(tmp_path / "m.safetensors", *renamed(tensors, r"^model\.diffusion_model\.", prefix)))


def test_three_networks_in_one_file_by_the_names_of_components(tmp_path, whole, in_silence):
    """As programs save a whole pipeline's state."""
    tensors, marks = {}, {}
    for network in NETWORKS:
        file = f"{network.folder}__{network.file}.fp16.safetensors"
        for name, (_, shape) in without(small(header(file)), "position_ids").items():
            tensors[f"{network.folder}.{name}"] = ("F32", shape)
            marks[f"{network.folder}.{name}"] = mark_of(name, network.folder)
    check_small(load_small(write(tmp_path / "m.safetensors", tensors, marks)))


@pytest.mark.parametrize("name", ["m.ckpt", "m.pt", "m.bin"])
def test_safetensors_under_the_name_of_a_pickle(tmp_path, whole, name):
    path = write(tmp_path / name, whole)
    assert set(find_model(path).files.values()) == {path}
    check_small(load_small(path))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.non_ema.safetensors", "mine.safetensors",
                                  "diffusion_pytorch_model.bin"])  # fmt: skip
def test_the_only_file_of_a_network_may_have_any_name(tmp_path, states, name):
    folder = save_components(tmp_path, states)
    for network in ("unet", "vae"):
        plain = folder / network / "diffusion_pytorch_model.safetensors"
        plain.rename(plain.with_name(name))
    assert find_model(folder).files["unet"].name == name
    assert_equal(load_networks(find_model(folder, vae=folder / "vae"), CPU, torch.float32), states)


def test_known_extras_load_in_silence(tmp_path, whole, in_silence):
    extras = {"logvar": ("F32", [1000]), "lvlb_weights": ("F32", [1000]), "v_pred": ("F32", [0]),
              "cond_stage_model.logit_scale": ("F32", []), "first_stage_model.loss.logvar": ("F32", [])}  # fmt: skip
    check_small(load_small(write(tmp_path / "m.safetensors", whole | extras)))


def test_unknown_extras_warn_once(tmp_path, whole):
    junk = {"ztsnr": ("F32", [0]), "denoiser.sigmas": ("F32", [1000]), "global_step": ("I64", []),
            "embedding_manager.string_to_param.*": ("F32", [1, 768]),
            "cond_stage_model.transformer.vision_model.x": ("U8", [4])}  # fmt: skip
    path = write(tmp_path / "m.safetensors", whole | junk)
    with pytest.warns(UserWarning) as said:
        check_small(load_small(path))
    names = "cond_stage_model.transformer.vision_model.x, denoiser.sigmas, embedding_manager.string_to_param.* …"
    assert [str(warning.message) for warning in said] == [f"{path}: 5 unknown tensors, not used: {names}"]


def test_schedule_of_the_file_is_not_used(tmp_path, whole):
    """Merges store it rounded to half precision or damaged. It is computed: ᾱ_981 by the published formula."""
    path = write(tmp_path / "m.safetensors", whole | {"alphas_cumprod": ("F16", [7]), "betas": ("BF16", [1000])})
    networks = load_small(path)
    check_small(networks)
    assert not [t for module in networks for t in module.state_dict().values() if 1000 in t.shape]
    assert ALPHA_BAR[[0, 1, 500, 981, 999]] == pytest.approx(
        [0.99915, 0.9982960278, 0.2763326838, 0.0057755001, 0.0046600985], abs=5e-11
    )


# ---------------------------------------------------------------------------------------------------------------------
# Numbers, in tiny.


def assert_equal(networks, states, dtype=torch.float32) -> None:
    for module, state in zip(networks, (states[folder] for folder in TINY), strict=True):
        loaded = module.state_dict()
        assert loaded.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(loaded[name], tensor.to(dtype)), name


def test_both_layouts_give_the_same_bits(tmp_path, states):
    folder, path = save_components(tmp_path / "model", states), save_single(tmp_path / "model.safetensors", states)
    assert find_model(folder).configs == TINY
    assert_equal(load_networks(find_model(folder), CPU, torch.float32), states)
    assert_equal(load_networks(Source(dict.fromkeys(TINY, path), TINY), CPU, torch.float32), states)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_numbers_are_cast_once(tmp_path, states, stored, wanted):
    """Half to float exactly, float to half with one rounding."""
    stored_states = mapped_states(states, lambda t: t.to(stored))
    networks = list(load_networks(find_model(save_components(tmp_path, stored_states)), CPU, wanted))
    assert_equal(networks, stored_states, wanted)
    assert {t.dtype for module in networks for t in module.state_dict().values()} == {wanted}


def test_fp16_files_are_taken_on_request(tmp_path, states):
    """A folder with both kinds: fp16 for half precision, else fp32. With one kind: that."""
    halves = mapped_states(states, torch.Tensor.half)
    save_components(tmp_path, states)
    save_components(tmp_path, halves, ".fp16")
    assert all(".fp16." in path.name for path in find_model(tmp_path, half=True).files.values())
    assert not any(".fp16." in path.name for path in find_model(tmp_path).files.values())
    for path in find_model(tmp_path).files.values():
        path.unlink()
    assert_equal(load_networks(find_model(tmp_path), CPU, torch.float32), halves)


def test_vae_of_the_same_kind(tmp_path, states):
    """As a folder or as a file. The model's own need not be there: its config.json says which kind it was."""
    folder = save_components(tmp_path / "model", states)
    other = mapped_states(states, lambda t: t + 1)
    vae = save_components(tmp_path / "other", other) / "vae"
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    for given in (vae, vae / "diffusion_pytorch_model.safetensors"):
        networks = load_networks(find_model(folder, vae=given), CPU, torch.float32)
        assert_equal(networks, states | {"vae": other["vae"]})


def test_paths_without_a_name(tmp_path, states, monkeypatch):
    monkeypatch.chdir(save_components(tmp_path, states))
    assert_equal(load_networks(find_model(Path(".")), CPU, torch.float32), states)
    monkeypatch.chdir(tmp_path / "vae")
    assert_equal(load_networks(find_model(Path(".."), vae=Path(".")), CPU, torch.float32), states)


def test_networks_outlive_their_files(tmp_path, states):
    folder = save_components(tmp_path / "model", states)
    networks = list(load_networks(find_model(folder), CPU, torch.float32))
    shutil.rmtree(folder)
    gc.collect()
    assert_equal(networks, states)


def test_loading_leaves_files_and_random_numbers_alone(tmp_path, states):
    """Even a change to the weights stays in this process."""
    folder = save_components(tmp_path, states)
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    random = torch.get_rng_state()
    with torch.no_grad():
        for module in load_networks(find_model(folder), CPU, torch.float32):
            for parameter in module.parameters():
                parameter.add_(1)
    assert torch.equal(torch.get_rng_state(), random)
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == before


def test_no_numbers_are_drawn_for_weights_that_are_read(tmp_path, states, monkeypatch):
    """The first `normal_` on the meta device imports a compiler, which takes longer than to load SD-1.5."""
    source = find_model(save_components(tmp_path, states))
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("drew random numbers"))
    assert_equal(load_networks(source, CPU, torch.float32), states)


def test_load_from_python(tmp_path, states):
    model = minipnp.load(save_components(tmp_path, states), device="cpu")
    assert_equal((model.unet, model.vae, model.text_encoder), states)
    assert (model.size, model.multiple) == (16, 16)
    assert model.embed("a horse", "").shape == (2, 77, 16)


WORD = "<cat-toy>"
WORD_FILES = {
    "added_tokens.json": {WORD: 49408},
    "vocab.json": {"!": 0, "<|endoftext|>": 49407, f"{WORD}</w>": 49408},
    "tokenizer.json": {
        "added_tokens": [{"id": 49407, "content": "<|endoftext|>"}, {"id": 49408, "content": WORD}],
        "model": {"vocab": {"!": 0}},
    },
    "tokenizer_config.json": {
        "added_tokens_decoder": {"49407": {"content": "<|endoftext|>"}, "49408": {"content": WORD}}
    },
    "special_tokens_map.json": {"additional_special_tokens": ["<|endoftext|>", {"content": WORD}]},
}


def with_a_word(folder: Path, states) -> Path:
    """The model with an embedding for one word more."""
    tokens = states["text_encoder"]["tokens.weight"]
    more = {"tokens.weight": torch.cat([tokens, tokens[:1]])}
    text = states["text_encoder"] | more
    return save_components(folder, states | {"text_encoder": text}, text_encoder={"vocab_size": 49409})


@pytest.mark.parametrize("file", WORD_FILES)
def test_a_word_that_the_models_tokenizer_adds(tmp_path, states, file):
    folder = with_a_word(tmp_path, states)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / file).write_text(json.dumps(WORD_FILES[file]))
    model = minipnp.load(folder, device="cpu")
    refused(lambda: model.embed("a flat icon of a <Cat-Toy>"), repr(WORD), "textual inversion")
    assert model.embed("a cat toy, <|endoftext|>!").shape == (1, 77, 16)
    (folder / "tokenizer" / file).write_text("{")
    refused(lambda: minipnp.load(folder, device="cpu"), str(folder / "tokenizer" / file), "not a readable file")


def test_tokens_more_than_clips_of_which_no_file_says_the_words(tmp_path, states):
    with pytest.warns(UserWarning, match="has 1 tokens more than CLIP"):
        minipnp.load(with_a_word(tmp_path, states), device="cpu")


# ---------------------------------------------------------------------------------------------------------------------
# What the UNet predicts.


@pytest.mark.parametrize("said, prediction", [(None, "epsilon"), ("epsilon", "epsilon"), ("v_prediction", "v")])
def test_prediction_from_the_scheduler(tmp_path, states, said, prediction):
    settings = SCHEDULER | ({} if said is None else {"prediction_type": said})
    folder = save_components(tmp_path, states, scheduler=settings)
    assert next(load_networks(find_model(folder), CPU, torch.float32)).config.prediction == prediction
    for asked in ("v", "epsilon"):
        assert find_model(folder, prediction=asked).configs["unet"].prediction == asked


SIDECARS = {
    'model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n': "v",
    "model:\n  params:\n    parameterization: 'v'   # v-prediction\r\n": "v",
    "parameterization:   v\n": "v",
    "  parameterization : v": "v",
    '    parameterization: "eps"\n': "epsilon",
    "model:\n  params:\n    linear_start: 0.00085\n": "epsilon",
    "# parameterization: v\n": "epsilon",
    "": "epsilon",
}


@pytest.mark.parametrize("text", SIDECARS)
def test_prediction_from_the_file_beside(tmp_path, text):
    path = write(tmp_path / "fine.tune.v2.safetensors", {"x": ("F32", [4])})
    (tmp_path / "fine.tune.v2.yaml").write_text(text)
    assert find_model(path).configs["unet"].prediction == SIDECARS[text]
    for asked in ("v", "epsilon"):
        assert find_model(path, prediction=asked).configs["unet"].prediction == asked


def test_prediction_from_the_file_itself(tmp_path):
    """An empty tensor called v_pred, or the metadata of ModelSpec."""
    path = tmp_path / "m.safetensors"
    assert find_model(write(path, {"v_pred": ("F32", [0])})).configs["unet"].prediction == "v"
    for said, prediction in {"v": "v", "epsilon": "epsilon", "": "epsilon"}.items():
        write(path, {"x": ("F32", [4])}, metadata={"modelspec.prediction_type": said})
        assert find_model(path).configs["unet"].prediction == prediction
    (tmp_path / "m.yaml").write_text("parameterization: eps")  # a person wrote it for this file: it counts more
    assert find_model(write(path, {"v_pred": ("F32", [0])})).configs["unet"].prediction == "epsilon"


def test_unknown_prediction(tmp_path):
    path = write(tmp_path / "m.safetensors", {"x": ("F32", [4])})
    (tmp_path / "m.yaml").write_text("parameterization: x0\n")
    refused(lambda: find_model(path), "m.yaml", "x0")
    with pytest.raises(minipnp.InputError, match="sample"):
        minipnp.load(path, prediction="sample")


def test_names_file_is_whole():
    assert len(NAMES) == len(set(SINGLE.values())) == 1131 and json.dumps(NAMES).isascii()
