"""Layer by layer, our networks are those of diffusers (UNet, VAE), transformers and open_clip (text encoder).

Small networks with random weights, in several shapes. First every kind of layer by itself, then the whole networks with
the comparer (tools/verify/compare.py), which names the first layer that differs. test_parity_full.py does it at
SD-1.5's size.

Tolerances (float32): ‖a−b‖/‖b‖ and max|a−b|/max|b| at most 1e-5 for a layer and 1e-4 for a network: PER_LAYER and WHOLE
in tools/verify/compare.py, with the reason. Most of what is compared here agrees to the last bit.
"""

import re
from dataclasses import replace

import pytest
import torch
from conftest import relative
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from einops import rearrange
from oracle import SD15, effects, noise, pair, published, same
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from minipnp import load
from minipnp.config import TextConfig, UNetConfig, VAEConfig
from minipnp.ddim import timesteps
from minipnp.files.configs import read_config
from minipnp.files.hub import WEIGHTS
from minipnp.layers import Attention, FeedForward, ResBlock, Transformer, Upsample
from minipnp.model import Source
from minipnp.slots import Features, Tap, decoder
from minipnp.text import Block, TextEncoder
from minipnp.unet import TABLE, Pass, UNet
from minipnp.vae import VAE, SpatialAttention
from minipnp.weights import NETWORKS, UNET_EMA, published_name
from minipnp.weights import UNET as UNET_NAMES
from tools.verify.compare import PER_LAYER, WHOLE, compare
from tools.verify.reference import PUBLISHED, compare_decode, compare_encode, compare_text, compare_unet, filled
from tools.verify.reference import load as load_reference

pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")  # diffusers' own affair

BUNDLED = WEIGHTS / "bundled"

UNETS = {
    "bundled": read_config(UNetConfig, BUNDLED / "unet" / "config.json"),
    "odd": UNetConfig(channels=(24, 48, 48, 96), heads=3, context=20, groups=12, size=8),
    "one head": UNetConfig(channels=(16, 32, 64, 64), heads=1, context=40, groups=4, size=8),
}
VAES = {
    "bundled": read_config(VAEConfig, BUNDLED / "vae" / "config.json"),
    "2 levels": VAEConfig(channels=(12, 36), blocks=2, groups=6, scale=0.7),
    "4 levels": VAEConfig(channels=(8, 16, 32, 32), blocks=2, groups=8),
    "4 levels of 1 block": VAEConfig(channels=(16, 16, 24, 32), blocks=1, groups=4, scale=1.3),
}
TEXTS = {
    "bundled": read_config(TextConfig, BUNDLED / "text_encoder" / "config.json"),
    "odd": TextConfig(width=60, layers=3, heads=5, mlp=100, vocabulary=1000),
    "one head": TextConfig(width=32, layers=2, heads=1, mlp=128, vocabulary=500),
}

# A norm divides by √(variance + eps), which on ordinary values hides whether eps is 1e-5 or 1e-6. On faint ones, whose
# variance is 1e-6, it decides.
ORDINARY, FAINT = 1.0, 1e-3
SIZES = pytest.mark.parametrize("size", [ORDINARY, FAINT], ids=["ordinary", "faint"])


@pytest.fixture(scope="module", params=UNETS)
def unets(request):
    return pair(UNet, UNETS[request.param])


@pytest.fixture(scope="module", params=VAES)
def vaes(request):
    return pair(VAE, VAES[request.param])


@pytest.fixture(scope="module", params=TEXTS)
def texts(request):
    return pair(TextEncoder, TEXTS[request.param])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def run(ours, theirs):
    x, context = noise(1, 4, 16, 16), noise(1, 77, ours.config.context)
    return compare_unet(ours, theirs, x, torch.tensor([501]), context)


# ---- the UNet's layers, each by itself ----


@SIZES
def test_resblock(unets, size):
    for name, ours, theirs in unets.layers(ResBlock):
        x, time = size * noise(2, ours.conv1.in_channels, 6, 10), noise(2, ours.time.in_features)
        same(name, ours(x, time)[0], theirs(x, time))


@SIZES
def test_self_attention(unets, size):
    for name, ours, theirs in unets.layers(Attention, "self_attn"):
        x = size * noise(2, 60, ours.q.in_features)
        same(name, ours(x)[0], theirs(x))


@SIZES
def test_cross_attention(unets, size):
    for name, ours, theirs in unets.layers(Attention, "cross_attn"):
        x, context = size * noise(2, 60, ours.q.in_features), noise(2, 77, ours.k.in_features)
        same(name, ours(x, context)[0], theirs(x, encoder_hidden_states=context))


def test_feed_forward(unets):
    """Wide inputs too: the exact gelu and its tanh approximation are 5e-4 apart, around ±2."""
    for name, ours, theirs in unets.layers(FeedForward):
        x = 3 * noise(2, 60, ours.proj.in_features)
        same(name, ours(x), theirs(x))


@SIZES
def test_transformer(unets, size):
    """The transformer block, and the norm and the 1×1 convolutions around it."""
    context = noise(2, 77, unets.ours.config.context)
    for name, ours, theirs in unets.layers(Transformer):
        x = size * noise(2, ours.proj_in.in_channels, 6, 10)
        same(name, ours(x, context)[0], theirs(x, encoder_hidden_states=context).sample)


@pytest.mark.parametrize("t", [0, 1, 501, 981, 999, 1000, 0.5])
def test_time_embedding(unets, t):
    t = torch.tensor([t])
    ours, theirs = unets.ours.time, unets.theirs
    same("time", ours(t), theirs.time_embedding(theirs.time_proj(t)))


def test_downsampling(unets):
    """Padding on all four sides, odd sides too."""
    for name, ours, theirs in unets.layers(nn.Conv2d, ".down"):
        x = noise(2, ours.in_channels, 7, 10)
        same(name, ours(x), theirs(x))


def test_upsampling(unets):
    for name, ours, theirs in unets.layers(Upsample):
        x = noise(2, ours.conv.in_channels, 3, 5)
        same(name, ours(x), theirs(x))


@pytest.mark.parametrize("kind", [nn.GroupNorm, nn.LayerNorm])
def test_norms_on_faint_values(unets, kind):
    for name, ours, theirs in unets.layers(kind):
        shape = (ours.num_channels, 6, 10) if kind is nn.GroupNorm else (60, *ours.normalized_shape)
        x = FAINT * noise(2, *shape)
        same(name, ours(x), theirs(x))


@pytest.mark.parametrize("layer", TABLE, ids=str)
def test_row(unets, layer):
    """Each of the 25 rows, against the published layers in their order of execution."""
    (row,) = (row for row in unets.ours.rows if row.layer == layer)
    (prefix,) = (name for name, module in unets.ours.named_modules() if module is row)
    theirs = {name: theirs for name, _, theirs in unets.layers(nn.Module)}
    first = next(module for module in row.modules() if isinstance(module, nn.Conv2d))
    x = noise(2, first.in_channels, 8, 12)
    time, context = noise(2, 4 * unets.ours.config.channels[0]), noise(2, 77, unets.ours.config.context)

    expected = x
    for stage, call in STAGES.items():
        if f"{prefix}.{stage}" in theirs:
            expected = call(theirs[f"{prefix}.{stage}"], expected, time, context)
    same(str(layer), row(x, Pass(time, context, Features(), Tap(), Features())), expected)


STAGES = {  # of a row, in the order of execution; how the published layers are called
    "conv": lambda net, x, time, context: net(x),
    "down": lambda net, x, time, context: net(x),
    "res": lambda net, x, time, context: net(x, time),
    "transformer": lambda net, x, time, context: net(x, encoder_hidden_states=context).sample,
    "res2": lambda net, x, time, context: net(x, time),
    "up": lambda net, x, time, context: net(x),
}


# ---- the whole UNet ----


def test_every_part_matters(unets):
    """Else the tests below would hold for a network that leaves something out."""
    found = effects(unets.ours, noise(1, 4, 16, 16), noise(1, 77, unets.ours.config.context))
    assert all(effect > 0.1 for effect in found.values()), found


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 8, 24), (3, 24, 16)], ids=str)
def test_unet(unets, shape):
    n, height, width = shape
    t, context = torch.tensor([981, 501, 1][:n]), noise(n, 77, unets.ours.config.context)
    found = compare_unet(*unets, noise(n, 4, height, width), t, context)
    assert found.fault() is None, found.fault()
    assert len(found.layers) > 450


def test_unet_one_latent_with_several_texts(unets):
    """What all branches share is computed once; the result is that of the batch written out."""
    ours, theirs = unets
    x, contexts = noise(1, 4, 8, 24), noise(3, 77, ours.config.context)
    e = theirs(x.expand(3, -1, -1, -1), 981, encoder_hidden_states=contexts).sample
    same("ε", ours(x, 981, contexts), e, WHOLE)
    assert relative(e[:1], e[1:2]) > 0.1


def test_unet_that_predicts_v():
    """ε from v as diffusers' scheduler has it: √ᾱ·v + √(1−ᾱ)·x."""
    ours, theirs = pair(UNet, UNETS["odd"])
    ours.config = replace(ours.config, prediction="v")
    x, context = noise(2, 4, 8, 24), noise(2, 77, ours.config.context)
    found = compare_unet(ours, theirs, x, torch.tensor([981, 21]), context)
    assert found.fault() is None, found.fault()


# ---- the VAE ----


@SIZES
def test_vae_resblock(vaes, size):
    for name, ours, theirs in vaes.layers(ResBlock):
        x = size * noise(2, ours.conv1.in_channels, 6, 10)
        same(name, ours(x)[0], theirs(x, None))


@SIZES
def test_vae_attention(vaes, size):
    for name, ours, theirs in vaes.layers(SpatialAttention):
        x = size * noise(2, ours.q.in_features, 6, 10)
        same(name, ours(x), theirs(x))


def test_vae_norms_on_faint_values(vaes):
    for name, ours, theirs in vaes.layers(nn.GroupNorm):
        x = FAINT * noise(2, ours.num_channels, 6, 10)
        same(name, ours(x), theirs(x))


def test_vae_downsampling(vaes):
    """It pads on the right and below only, in Level.forward: the level is compared, against blocks and downsampler."""
    theirs = {name: theirs for name, _, theirs in vaes.layers(nn.Module)}
    for i, level in enumerate(vaes.ours.encoder.levels[:-1]):
        x = expected = noise(2, level.res[0].conv1.in_channels, 6, 10)
        for j in range(len(level.res)):
            expected = theirs[f"encoder.levels.{i}.res.{j}"](expected, None)
        expected = vaes.theirs.encoder.down_blocks[i].downsamplers[0](expected)
        same(f"encoder.levels.{i}", level(x), expected)


def test_vae_upsampling(vaes):
    for name, ours, theirs in vaes.layers(Upsample):
        x = noise(2, ours.conv.in_channels, 3, 5)
        same(name, ours(x), theirs(x))


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 24, 40)], ids=str)
def test_vae_encode(vaes, shape):
    n, height, width = shape
    found = compare_encode(*vaes, noise(n, 3, height, width).clamp(-1, 1))
    assert found.fault() is None, found.fault()


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 6, 10)], ids=str)
def test_vae_decode(vaes, shape):
    n, height, width = shape
    found = compare_decode(*vaes, noise(n, 4, height, width))
    assert found.fault() is None, found.fault()


def test_vae_sample_of_the_posterior(vaes):
    picture = noise(2, 3, 24, 40)
    posterior = vaes.theirs.encode(picture).latent_dist
    z = noise(*posterior.mean.shape)
    sample = (posterior.mean + posterior.std * z) * vaes.ours.config.scale
    same("a sample", vaes.ours.encode(picture, z), sample, WHOLE)
    assert relative(sample, posterior.mean * vaes.ours.config.scale) > 0.1


# ---- the text encoder ----


def test_text_encoder(texts):
    ids = torch.randint(texts.ours.config.vocabulary, (3, 77), generator=torch.Generator().manual_seed(1))
    found = compare_text(*texts, ids)
    assert found.fault() is None, found.fault()


def test_text_block(texts):
    causal = torch.full((77, 77), float("-inf")).triu(1)[None, None]
    for name, ours, theirs in texts.layers(Block):
        x = noise(2, 77, texts.ours.config.width)
        same(name, ours(x), theirs(x, attention_mask=causal))


@SIZES
def test_text_norms(texts, size):
    for name, ours, theirs in texts.layers(nn.LayerNorm):
        x = size * noise(2, 77, texts.ours.config.width)
        same(name, ours(x), theirs(x))


def test_text_encoder_against_open_clip(texts):
    """A second implementation, which keeps q, k and v in one matrix and has the activation as a module."""
    from open_clip.transformer import QuickGELU, TextTransformer

    ours, c = texts.ours, texts.ours.config
    theirs = TextTransformer(
        c.positions, c.vocabulary, c.width, c.heads, c.layers, mlp_ratio=c.mlp / c.width, act_layer=QuickGELU,
        pool_type="none", proj_type="none",
    ).eval()  # fmt: skip
    w = ours.state_dict()
    names = [
        (r"^tokens\.", "token_embedding."), (r"^positions\.weight", "positional_embedding"),
        (r"^blocks\.", "transformer.resblocks."), (r"\.norm([12])\.", r".ln_\1."), (r"^norm_out\.", "ln_final."),
        (r"\.attn\.out\.", ".attn.out_proj."), (r"\.fc1\.", ".mlp.c_fc."), (r"\.fc2\.", ".mlp.c_proj."),
    ]  # fmt: skip
    weights = {published_name(name, names): tensor for name, tensor in w.items() if not re.search(r"\.[qkv]\.", name)}
    for i in range(c.layers):
        for kind in ("weight", "bias"):
            fused = torch.cat([w[f"blocks.{i}.attn.{name}.{kind}"] for name in "qkv"])
            weights[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = fused
    theirs.load_state_dict(weights, strict=True)

    ids = torch.randint(c.vocabulary, (2, 77), generator=torch.Generator().manual_seed(2))
    x, mask = theirs._embeds(ids)
    same("the text encoder", ours(ids), theirs.ln_final(theirs.transformer(x, attn_mask=mask)), WHOLE)


# ---- what the published files say ----


def test_the_defaults_are_sd15s():
    assert UNetConfig() == read_config(UNetConfig, SD15 / "unet" / "config.json")
    assert VAEConfig() == read_config(VAEConfig, SD15 / "vae" / "config.json")
    assert TextConfig() == read_config(TextConfig, SD15 / "text_encoder" / "config.json")


def test_sd15s_latent_scale():
    """Its config.json does not say it; the oracle has diffusers' own default."""
    settings = {**published("vae"), "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4}
    assert "scaling_factor" not in settings
    ours, theirs = pair(VAE, VAEConfig(channels=(8, 8, 8, 8), groups=4), settings)
    assert AutoencoderKL.from_config(settings).config.scaling_factor == 0.18215
    for found in (compare_encode(ours, theirs, noise(1, 3, 32, 32)), compare_decode(ours, theirs, noise(1, 4, 4, 4))):
        assert found.fault() is None, found.fault()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model as diffusers and transformers write it, and its three networks there."""
    text = TextConfig(width=20, layers=2, heads=2, mlp=80)  # with the whole vocabulary: another is refused
    unet, vae, text = pair(UNet, UNETS["odd"]), pair(VAE, VAES["4 levels"]), pair(TextEncoder, text)
    folder = tmp_path_factory.mktemp("model")
    for name, one in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        one.theirs.save_pretrained(folder / name)
    return folder, unet.theirs, vae.theirs, text.theirs


def check(unet, vae, text, their_unet, their_vae, their_text):
    for found in (
        compare_unet(unet, their_unet, noise(1, 4, 16, 16), torch.tensor([501]), noise(1, 77, unet.config.context)),
        compare_encode(vae, their_vae, noise(1, 3, 32, 32)),
        compare_decode(vae, their_vae, noise(1, 4, 4, 4)),
        compare_text(text, their_text, torch.arange(77)[None]),
    ):
        assert found.fault() is None, found.fault()


def check_folder(folder, *theirs):
    m = load(folder, device="cpu", dtype="float32")
    check(m.unet, m.vae, m.text_encoder, *theirs)


def test_folder_that_diffusers_and_transformers_wrote(model):
    check_folder(*model)


@pytest.mark.parametrize("prefix", ["text_model.", ""], ids=["with text_model.", "without"])
def test_either_generation_of_the_text_encoders_names(model, prefix):
    """transformers 5 has no `text_model.` before its names; the files on the hub do, and some others do not."""
    file = model[0] / "text_encoder" / "model.safetensors"
    before = load_file(file)
    names = {name: prefix + name.removeprefix("text_model.") for name in before}
    try:
        save_file({names[name]: tensor for name, tensor in before.items()}, file)
        check_folder(*model)
    finally:
        save_file(before, file)


def named(ours, network):
    """Our weights under the names of the single-file layout."""
    prefix, rules = network.prefixes[0], network.tables[0]
    return {prefix + published_name(name, rules): tensor for name, tensor in ours.state_dict().items()}


def test_single_file_that_diffusers_reads(tmp_path):
    """Our names for the single-file layout, read by diffusers: the networks we started from.

    In half precision, as most are; the VAE of 4 levels, as that layout's is, its attention as 1×1 convolutions.
    """
    nets = {"unet": (UNet, UNETS["odd"]), "vae": (VAE, VAES["4 levels"]), "text_encoder": (TextEncoder, TEXTS["odd"])}
    file, ours = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}, {}
    for network in NETWORKS:
        ours[network.folder] = net = pair(*nets[network.folder]).ours.half()
        file |= named(net, network)
        net.float()
    file = {name: w[..., None, None] if "mid.attn_1" in name and w.dim() == 2 else w for name, w in file.items()}
    path = tmp_path / "model.safetensors"
    save_file(file, path)
    source = Source(dict.fromkeys(nets, path), {folder: config for folder, (_, config) in nets.items()})
    check(ours["unet"], ours["vae"], ours["text_encoder"], *(load_reference(kind, source) for kind, _ in nets.values()))


def test_averaged_weights_under_the_names_that_diffusers_knows(unets):
    """Its converter takes them in place of the plain ones, which are zero here."""
    file = {name: torch.zeros_like(w) for name, w in named(unets.ours, UNET_NAMES).items()}
    with torch.device("meta"):
        theirs = PUBLISHED[UNet].build(PUBLISHED[UNet].settings(unets.ours.config))
    filled(theirs, convert_ldm_unet_checkpoint(file | named(unets.ours, UNET_EMA), theirs.config, extract_ema=True))
    found = run(unets.ours, theirs)
    assert found.fault() is None, found.fault()


# ---- the authors' network ----


@pytest.mark.parametrize("tag", ["square", "nonsquare"])
def test_the_authors_unet(golden_unet, golden, tag):
    """ε, f of decoder layer 4, q and k of decoder layers 4 to 11, as the authors' code gave them on their machine.

    The stored values are 1.5e-6 from the same code in float64.
    """
    d = golden("unet_forward")
    x, context = d[f"{tag}.x"], d[f"{tag}.context"]
    layers, compared = decoder(*range(12)), set()
    tap = Tap(f=decoder(4), q=layers[4:], k=layers[4:])
    for t in (981, 401, 1):
        z, taken = golden_unet.tap(x, t, context, tap)
        for key in (key for key in d if key.startswith(f"{tag}.t{t}.")):
            what = key.rpartition(".")[2]
            if what == "eps":
                value = z
            elif what == "f_up1_res1":
                value = taken.f[layers[4]]
            elif what == "out_up1_res1":
                continue  # after the skip connection: what f becomes, not what is injected
            else:
                quantity, layer = re.fullmatch(r"([qk])_layer(\d+)", what).groups()
                value = rearrange(getattr(taken.A[layers[int(layer)]], quantity), "b heads n d -> b n (heads d)")
                value = value[: len(d[key])]  # of layers 7 to 11 only the first row is stored
            same(key, value, d[key])
            compared.add(what)
    stored = range(4, 12) if tag == "square" else (4, 7, 11)
    assert compared == {"eps", "f_up1_res1", *(f"{qk}_layer{i}" for qk in "qk" for i in stored)}


# ---- the comparer ----


def test_the_comparer_names_the_layer_with_another_weight():
    ours, theirs = pair(UNet, UNETS["odd"])
    ours.decoder[4].res.conv2.weight.data = 1.001 * ours.decoder[4].res.conv2.weight
    found = run(ours, theirs)
    assert [d.layer for d in found.layers if not d.within(PER_LAYER)] == ["decoder.4.res.conv2"]
    assert "first layer that differs is decoder.4.res.conv2 (up_blocks.1.resnets.1.conv2)" in found.fault()
    assert "it follows decoder.4.res.norm2, which agrees" in found.fault()


def test_the_comparer_names_the_layer_after_another_calculation(monkeypatch):
    """A mistake between two layers shows where its result goes in."""
    ours, theirs = pair(UNet, UNETS["odd"])

    def swapped(self, x):
        gate, x = self.proj(x).chunk(2, dim=-1)
        return self.out(x * F.gelu(gate))

    monkeypatch.setattr(FeedForward, "forward", swapped)
    assert "first layer that differs is encoder.1.transformer.ff.out" in run(ours, theirs).fault()


def test_the_comparer_sees_what_no_layer_shows():
    """Here the last step: each layer agrees, the result does not."""
    ours, theirs = pair(VAE, VAES["2 levels"])
    ours.config = replace(ours.config, scale=0.5)
    found = compare_encode(ours, theirs, noise(1, 3, 16, 16))
    assert "each layer that ran agrees" in found.fault() and "the whole network" in found.fault()


def test_the_comparer_names_a_layer_that_was_left_out():
    ours, theirs = pair(TextEncoder, TEXTS["odd"])
    ids = torch.arange(77)[None]
    without = compare(ours, theirs, PUBLISHED[TextEncoder].rules,
                      lambda net: net.blocks[2](net.blocks[1](net.blocks[0](net.tokens(ids) + net.positions.weight))),
                      lambda net: net(ids).last_hidden_state)  # fmt: skip
    assert "the reference also ran" in without.fault() and "norm_out" in without.fault()


def test_the_comparer_takes_nan_for_a_difference():
    ours, theirs = pair(UNet, UNETS["odd"])
    ours.middle.res.time.bias.data = torch.full_like(ours.middle.res.time.bias, float("nan"))
    assert "first layer that differs is middle.res.time" in run(ours, theirs).fault()


def test_the_comparer_leaves_no_layer_out():
    ours, theirs = pair(UNet, UNETS["odd"])
    ours.decoder[0].res.norm1 = nn.Sequential(ours.decoder[0].res.norm1)  # a layer under a name that nobody published
    with pytest.raises(LookupError, match="decoder.0.res.norm1.0 has weights"):
        run(ours, theirs)


def test_the_oracle_shares_our_weights():
    """It takes the tensors themselves: at full size there is room for them once."""
    ours, theirs = (net.state_dict() for net in pair(TextEncoder, TEXTS["odd"]))
    assert {w.data_ptr() for w in theirs.values()} == {w.data_ptr() for w in ours.values()}


@pytest.mark.parametrize("spacing, most", [("leading", 999), ("trailing", 666)])
def test_the_levels_of_every_number_of_steps_are_the_scheduler_s(spacing, most):
    scheduler = DDIMScheduler(steps_offset=1, timestep_spacing=spacing)
    for n in range(1, most + 1):
        scheduler.set_timesteps(n)
        assert scheduler.timesteps.tolist() == timesteps(n, spacing), n
