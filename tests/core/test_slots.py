"""The contracts of the slots: what may be put in, what comes out, and what stays as it was.

"Bit-identical" is torch.equal. Where the order of operations differs, 1e-5 (relative) allows for float32 rounding.
"""

import copy
import re
from dataclasses import replace

import pytest
import torch
from conftest import relative
from einops import rearrange
from torch import nn
from torch.nn import functional as F

import minipnp.unet as unet_module
from minipnp.ddim import ALPHA_BAR, guided, sample, timesteps
from minipnp.guidance import Guidance
from minipnp.layers import Attention, ResBlock
from minipnp.pnp import PnP, plug_and_play
from minipnp.slots import Attn, Features, Layer, Part, Tap, decoder
from minipnp.unet import ATTENTIONS, TABLE, UNet

CLOSE = 1e-5
(L4,), (L5,) = decoder(4), decoder(5)
RESBLOCKS = tuple(layer for layer, row in TABLE.items() if "R" in row.what)
SKIPS = decoder(*range(12))
EVERYTHING = Tap(f=RESBLOCKS, q=ATTENTIONS, k=ATTENTIONS, v=ATTENTIONS, A=ATTENTIONS, M=ATTENTIONS, s=SKIPS)


class Broken(nn.Module):
    """In the place of a layer that must not run."""

    def forward(self, *args):
        raise AssertionError("this layer ran")


@pytest.fixture
def run(golden_unet, inputs):
    """run(inject) → ε of the target; run.guidance: everything that a pass over another latent gives."""

    def run(inject=None, text=inputs["text"]):
        with torch.no_grad():
            return golden_unet(inputs["x"], 501, text, inject)

    with torch.no_grad():
        run.own = golden_unet.tap(inputs["x"], 501, inputs["text"], EVERYTHING)[1]
        run.guidance = golden_unet.tap(inputs["x"].flip(3), 501, inputs["null"], EVERYTHING)[1]
    return run


def only(attns, *names):
    return {layer: Attn(**{name: getattr(a, name) for name in names}) for layer, a in attns.items()}


# ---- nothing injected, nothing changed ----


def test_no_injection_is_bit_identical_to_the_plain_network(run):
    assert torch.equal(run(Features()), run())
    assert torch.equal(run(Features(A={L4: Attn()}, M={L5: Attn()})), run())


def test_layers_without_injection_are_the_plain_ones_to_the_bit(golden_unet):
    """Written out without slots: a block is its skip and its f, attention PyTorch's own fused one."""
    torch.manual_seed(0)
    row, h = golden_unet.decoder[4], torch.randn(1, 128, 4, 6)
    with torch.no_grad():
        time = golden_unet.time(torch.tensor([501]))
        out, _ = row.res(h, time)
        assert torch.equal(out, row.res.skip(h) + row.res.f(h, time))
        attention, x = row.transformer.self_attn, torch.randn(2, 24, 64)
        q, k, v = (attention.split(project(x)) for project in (attention.q, attention.k, attention.v))
        plain = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")
        assert torch.equal(attention(x)[0], attention.out(plain))


def test_an_edit_that_injects_nothing_is_guided_sampling_to_the_bit(golden_unet, inputs):
    s, levels = PnP(steps=3, tau_f=0.0, tau_A=0.0), timesteps(3)
    G = Guidance({t: inputs["x"].flip(3) for t in levels}, inputs["x"], inputs["x"], inputs["null"])
    *_, (_, x) = plug_and_play(golden_unet, G, [inputs["text"]], inputs["null"], s=s)
    with torch.no_grad():
        eps = lambda x, t: guided(golden_unet, x, t, inputs["text"], inputs["null"], s.scale)  # noqa: E731
        *_, (_, plain) = sample(eps, inputs["x"], levels)
    assert torch.equal(x, plain)


@pytest.mark.parametrize("kind", ["f", "q", "k", "v", "A", "M", "s"])
def test_a_tap_does_not_change_the_output_by_a_bit(golden_unet, inputs, run, kind):
    layers = {"f": RESBLOCKS, "s": SKIPS}.get(kind, ATTENTIONS)
    with torch.no_grad():
        z, taken = golden_unet.tap(inputs["x"], 501, inputs["text"], Tap(**{kind: layers}))
    assert torch.equal(z, run())
    got = {"f": taken.f, "M": taken.M, "s": taken.s}.get(kind, taken.A)
    assert set(got) == set(layers)


def test_a_tap_holds_only_what_was_asked_for(golden_unet, inputs):
    with torch.no_grad():
        _, taken = golden_unet.tap(inputs["x"], 501, inputs["text"], Tap(q=[L4]))
    assert not taken.f and not taken.M and not taken.s
    assert taken.A[L4].q is not None and taken.A[L4].k is taken.A[L4].v is taken.A[L4].map is None


OWN = {
    "f": lambda own: Features(f=own.f),
    "q, k": lambda own: Features(A=only(own.A, "q", "k")),
    "k, v": lambda own: Features(A=only(own.A, "k", "v")),
    "A": lambda own: Features(A=only(own.A, "map")),
    "M": lambda own: Features(M=only(own.M, "map")),
    "q, k, v of M": lambda own: Features(M=only(own.M, "q", "k", "v")),
    "f, q, k": lambda own: Features(own.f, only(own.A, "q", "k")),
    "s": lambda own: Features(s=own.s),
    "f, q, k, s": lambda own: Features(own.f, only(own.A, "q", "k"), s=own.s),
}


@pytest.mark.parametrize("what", OWN)
def test_injecting_a_passes_own_features_changes_nothing(run, what):
    assert relative(run(OWN[what](run.own)), run()) <= CLOSE


@pytest.mark.parametrize("what", OWN)
def test_injecting_other_features_changes_the_result(run, what):
    assert relative(run(OWN[what](run.guidance)), run()) > 1e-3


def test_v_stays_the_edited_branchs_own(golden_unet, inputs, run):
    """Up to and including the first layer whose A is replaced, all values are bit-identical to the plain pass."""
    inject = Features(A={L4: Attn(q=run.guidance.A[L4].q, k=run.guidance.A[L4].k)})
    with torch.no_grad():
        _, taken = golden_unet.tap(inputs["x"], 501, inputs["text"], Tap(v=ATTENTIONS), inject)
    before = [layer for layer in ATTENTIONS if layer <= L4]
    assert all(torch.equal(taken.A[layer].v, run.own.A[layer].v) for layer in before)
    assert not torch.equal(taken.A[L5].v, run.own.A[L5].v)


# ---- override: the layer's own is not computed ----


def test_an_injected_f_skips_norms_and_convolutions():
    torch.manual_seed(0)
    block, x, f = ResBlock(8, 16, groups=4, eps=1e-5, time=12), torch.randn(1, 8, 4, 4), torch.randn(1, 16, 4, 4)
    expected = block.skip(x) + f
    block.norm1 = block.conv1 = block.norm2 = block.conv2 = block.time = Broken()
    out, given = block(x, torch.randn(1, 12), inject=f)
    assert torch.equal(out, expected) and given is f


@pytest.mark.parametrize("names", [("q", "k"), ("k", "v"), ("map",), ("map", "v")])
def test_an_injected_quantity_is_not_computed(names):
    torch.manual_seed(0)
    attention, x = Attention(16, 16, heads=2), torch.randn(1, 6, 16)
    expected, own = attention(x, tap_map=True)
    for name in ("q", "k") if "map" in names else ():
        setattr(attention, name, Broken())
    for name in set(names) - {"map"}:
        setattr(attention, name, Broken())
    got, _ = attention(x, inject=Attn(**{name: getattr(own, name) for name in names}))
    assert relative(got, expected) <= CLOSE


def test_stop_gives_the_same_and_ends_with_the_row(golden_unet, inputs):
    """No row after that of the last feature runs, nor what comes after all rows."""
    layers = decoder(*range(4, 9))
    tap, unet = Tap(f=decoder(4), q=layers, k=layers), copy.deepcopy(golden_unet)
    with torch.no_grad():
        _, whole = unet.tap(inputs["x"], 501, inputs["text"], replace(tap, s=decoder(4)))
        for row in range(9, 12):
            unet.decoder[row] = Broken()
        unet.norm_out = unet.conv_out.forward = Broken()
        z, part = unet.tap(inputs["x"], 501, inputs["text"], tap, stop=True)
        unet.decoder[5] = Broken()
        _, only_f = unet.tap(inputs["x"], 501, inputs["text"], Tap(f=decoder(4)), stop=True)
        _, only_s = unet.tap(inputs["x"], 501, inputs["text"], Tap(s=decoder(4)), stop=True)
    assert z is None
    assert torch.equal(part.f[L4], whole.f[L4]) and torch.equal(only_f.f[L4], whole.f[L4])
    assert torch.equal(only_s.s[L4], whole.s[L4])
    for layer in layers:
        assert torch.equal(part.A[layer].q, whole.A[layer].q) and torch.equal(part.A[layer].k, whole.A[layer].k)


@pytest.mark.parametrize("kind", ["v", "A", "M"])
def test_stop_does_not_cut_off_what_is_asked_for(golden_unet, inputs, kind):
    """They come later in the row than q."""
    with torch.no_grad():
        whole = golden_unet.tap(inputs["x"], 501, inputs["text"], EVERYTHING)[1]
        part = golden_unet.tap(inputs["x"], 501, inputs["text"], Tap(q=[L4], **{kind: [L4]}), stop=True)[1]
    name = {"v": "v", "A": "map", "M": "map"}[kind]
    got, expected = ((taken.M if kind == "M" else taken.A)[L4] for taken in (part, whole))
    assert torch.equal(getattr(got, name), getattr(expected, name))


# ---- skip connections ----


def test_the_skip_connection_of_a_decoder_row_is_the_output_of_the_encoder_row_beside_it(golden_unet, inputs, run):
    out = {}
    hooks = [
        row.register_forward_hook(lambda row, args, h: out.update({row.layer.row: h})) for row in golden_unet.encoder
    ]
    run()
    for hook in hooks:
        hook.remove()
    assert [layer.row for layer in run.own.s] == list(range(12))
    assert all(torch.equal(s, out[11 - layer.row]) for layer, s in run.own.s.items())


def test_a_passes_own_skip_connections_change_no_bit(run):
    assert torch.equal(run(Features(s=run.own.s)), run())
    for layer in SKIPS:
        assert torch.equal(run(Features(s={layer: run.own.s[layer]})), run())


@pytest.mark.parametrize("layer", SKIPS, ids=str)
def test_another_skip_connection_is_used_and_reaches_the_rows_after_it_only(golden_unet, inputs, run, layer):
    other = Features(s={layer: run.guidance.s[layer]})
    with torch.no_grad():
        z, taken = golden_unet.tap(inputs["x"], 501, inputs["text"], EVERYTHING, other)
    assert relative(z, run()) > 1e-3
    assert taken.s[layer] is other.s[layer]  # what is tapped is what was used
    assert all(torch.equal(taken.s[at], run.own.s[at]) for at in SKIPS if at != layer)  # the encoder ran before
    same = {at: torch.equal(f, run.own.f[at]) for at, f in taken.f.items()}
    assert same == {at: at < layer for at in RESBLOCKS}


def test_one_skip_connection_serves_all_branches(golden_unet, inputs, run):
    texts = torch.cat([inputs["null"], inputs["text"], inputs["text"].flip(1)])
    one = {layer: run.guidance.s[layer] for layer in decoder(0, 4, 5, 11)}
    each = {layer: s.repeat(3, 1, 1, 1) for layer, s in one.items()}
    with torch.no_grad():
        got = golden_unet(inputs["x"], 501, texts, Features(s=one))
        assert torch.equal(got, golden_unet(inputs["x"], 501, texts, Features(s=each)))
        for i, text in enumerate(texts):
            assert relative(got[i : i + 1], golden_unet(inputs["x"], 501, text[None], Features(s=one))) <= CLOSE


def test_skip_connections_of_several_rows_go_to_their_branches(golden_unet, inputs):
    texts = torch.cat([inputs["null"], inputs["text"]])
    with torch.no_grad():
        _, both = golden_unet.tap(inputs["x"].flip(3), 501, texts, Tap(s=decoder(4, 5)))
        assert both.rows([-1, 0]).s[L4].shape[0] == 2 and torch.equal(both.rows([-1, 0]).s[L4], both.s[L4].flip(0))
        z = golden_unet(inputs["x"], 501, texts, both.rows([-1, 0]))
        for row, source in enumerate([1, 0]):
            alone = golden_unet(inputs["x"], 501, texts[row : row + 1], both.rows([source]))
            assert relative(z[row : row + 1], alone) <= CLOSE
        assert relative(z, golden_unet(inputs["x"], 501, texts, both)) > 1e-4
    single = Features(s={L4: both.s[L4][:1]})
    assert single.rows([-1, 0]).s[L4] is single.s[L4]  # one for all stays one


def test_guidance_keeps_skip_connections(golden_unet, inputs, run):
    """`ddim.guided` gives both branches what is injected."""
    put = Features(s={L4: run.guidance.s[L4]})
    with torch.no_grad():
        got = guided(golden_unet, inputs["x"], 501, inputs["text"], inputs["null"], 3.0, inject=put)
    assert relative(got, 3 * run(put) - 2 * run(put, inputs["null"])) <= CLOSE
    assert relative(got, 3 * run() - 2 * run(text=inputs["null"])) > 1e-3


# ---- edit, mask ----


def test_an_edit_gets_the_softmaxed_map_and_its_result_is_used(golden_unet, inputs, run):
    seen = []

    def keep(A):
        seen.append(A)
        return A

    assert relative(run(Features(M={L4: Attn(edit=keep)})), run()) <= CLOSE
    assert torch.equal(seen[0], run.own.M[L4].map)
    assert torch.allclose(seen[0].sum(-1), torch.ones(()), atol=1e-6)
    with torch.no_grad():
        inject = Features(M={L4: Attn(edit=torch.zeros_like)})
        z, taken = golden_unet.tap(inputs["x"], 501, inputs["text"], Tap(M=[L4]), inject)
    assert not taken.M[L4].map.any()  # what is tapped is the map as it was used
    assert relative(z, run()) > 1e-3


def test_a_mask_hides_keys():
    torch.manual_seed(0)
    attention, x = Attention(16, 16, heads=2), torch.randn(1, 6, 16)
    mask = torch.rand(6, 6) > 0.5
    mask.fill_diagonal_(True)
    got, a = attention(x, inject=Attn(mask=mask), tap_map=True)
    assert not a.map[..., ~mask].any() and torch.allclose(a.map.sum(-1), torch.ones(()), atol=1e-6)
    assert relative(got, attention(x, inject=Attn(map=a.map))[0]) <= CLOSE
    assert relative(attention(x, inject=Attn(mask=torch.ones(6, 6, dtype=torch.bool)))[0], attention(x)[0]) <= CLOSE
    assert relative(got, attention(x)[0]) > 1e-2
    assert relative(attention(x, inject=Attn(mask=mask, edit=lambda A: A))[0], got) <= CLOSE


# ---- tap: gradients, and values for later slots of the same pass ----


def test_a_tapped_map_carries_gradients(golden_unet, inputs):
    """d/dx of a sum over cross-attention maps, against a central difference along one direction."""
    layers = decoder(3, 6, 9)

    def energy(x):
        maps = golden_unet.tap(x, 501, inputs["text"], Tap(M=layers), stop=True)[1].M
        return sum((maps[layer].map.double() ** 2).sum() for layer in layers)

    x = inputs["x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (energy(x + 1e-2 * direction) - energy(x - 1e-2 * direction)) / 2e-2
    # float32 network, step 1e-2: the difference itself is good to about 1e-3.
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-2)


def test_a_slot_may_read_what_was_tapped_earlier_in_the_pass(golden_unet, inputs, run):
    seen = {}

    def slot(taken):
        seen.update(taken.M)
        return Attn(edit=torch.zeros_like)

    with torch.no_grad():
        z, _ = golden_unet.tap(inputs["x"], 501, inputs["text"], Tap(M=ATTENTIONS), Features(A={L5: slot}))
    assert set(seen) == {layer for layer in ATTENTIONS if layer < L5}
    assert all(torch.equal(M.map, run.own.M[layer].map) for layer, M in seen.items())
    assert torch.equal(z, run(Features(A={L5: Attn(edit=torch.zeros_like)})))


# ---- batches: one row serves all, and no layout that a caller has to know ----


def test_one_latent_serves_many_texts(golden_unet, inputs):
    texts = torch.cat([inputs["null"], inputs["text"], inputs["text"].flip(1)])
    with torch.no_grad():
        once = golden_unet(inputs["x"], 501, texts)
        apart = torch.cat([golden_unet(inputs["x"], 501, text[None]) for text in texts])
        explicit = golden_unet(inputs["x"].repeat(3, 1, 1, 1), torch.tensor([501, 501, 501]), texts)
    assert relative(once, apart) <= CLOSE and relative(once, explicit) <= CLOSE


def test_one_row_of_features_serves_all_branches(golden_unet, inputs, run):
    texts = torch.cat([inputs["null"], inputs["text"]])
    one = Features(run.guidance.f, only(run.guidance.A, "q", "k"))
    two = Features(
        {layer: f.repeat(2, 1, 1, 1) for layer, f in one.f.items()},
        {layer: Attn(q=a.q.repeat(2, 1, 1, 1), k=a.k.repeat(2, 1, 1, 1)) for layer, a in one.A.items()},
    )
    with torch.no_grad():
        assert relative(golden_unet(inputs["x"], 501, texts, one), golden_unet(inputs["x"], 501, texts, two)) <= CLOSE


def test_rows_of_features_go_to_the_branches_they_are_for(golden_unet, inputs):
    texts = torch.cat([inputs["null"], inputs["text"]])
    tap = Tap(f=decoder(4), q=decoder(4), k=decoder(4))
    with torch.no_grad():
        _, both = golden_unet.tap(inputs["x"].flip(3), 501, texts, tap)
        z = golden_unet(inputs["x"], 501, texts[[1, 0, 1]], both.rows([-1, 0, 0]))
        for row, (text, source) in enumerate([(1, 1), (0, 0), (1, 0)]):
            alone = golden_unet(inputs["x"], 501, texts[text : text + 1], both.rows([source]))
            assert relative(z[row : row + 1], alone) <= CLOSE


def test_rows_leave_a_slot_that_is_a_function(golden_unet, inputs):
    (L4,) = decoder(4)
    own = Features(A={L4: lambda taken: Attn()})
    assert own.rows([-1, 0]).A[L4] is own.A[L4]
    x, texts = inputs["x"], torch.cat([inputs["null"], inputs["text"]])
    with torch.no_grad():
        assert torch.equal(golden_unet(x, 501, texts, own.rows([-1, 0])), golden_unet(x, 501, texts, own))


# ---- the table ----


def test_the_table_is_that_of_sd15():
    assert [len([layer for layer in TABLE if layer.part is part]) for part in Part] == [12, 1, 12]
    assert len(RESBLOCKS) == 8 + 1 + 12 and len(ATTENTIONS) == 16
    assert [layer.row for layer in ATTENTIONS if layer.part is Part.DECODER] == list(range(3, 12))
    assert sorted(TABLE) == list(TABLE) and L4 == Layer(Part.DECODER, 4) and str(L4) == "decoder 4"
    with pytest.raises(ValueError, match="layers 0 to 11"):
        decoder(12)


def test_the_drawing_of_the_table_tells_the_truth():
    """unet.py's docstring gives cells, channels and contents of each row at 512 × 512; here they are measured."""
    with torch.device("meta"):
        unet = UNet()
    measured = {}
    for row in unet.rows:
        row.register_forward_hook(lambda row, args, out: measured.update({row.layer: (args[0].shape, out.shape)}))
    unet(*(torch.empty(shape, device="meta") for shape in [(1, 4, 64, 64), (1,), (1, 77, 768)]))

    half = r"(\d+)\s+(\d+)²\s+(\d+)→\s*(\d+)\s+(.*?)"
    rows = re.findall(rf"^\s+{half}\s\s+{half}(?:\s+A.*)?$", unet_module.__doc__, re.MULTILINE)
    (middle,) = re.findall(r"middle()\s+(\d+)²\s+(\d+)→\s*(\d+)\s+(.*)", unet_module.__doc__)
    drawn = {Layer(Part.ENCODER, int(row[0])): row[1:5] for row in rows}
    drawn |= {Layer(Part.MIDDLE, 0): middle[1:]}
    drawn |= {Layer(Part.DECODER, int(row[5])): row[6:10] for row in rows}
    assert set(drawn) == set(measured) == set(TABLE)
    for layer, (cells, c_in, c_out, what) in drawn.items():
        before, after = measured[layer]
        assert (int(c_in), int(c_out)) == (before[1], after[1]), str(layer)
        assert int(cells) == (before if "up" in TABLE[layer].what else after)[2], str(layer)
        assert what.replace("↑", "up") == TABLE[layer].what, str(layer)
    marked = [int(row) for row in re.findall(r"(\d+)\s+\d+²[^²]*\sA(?:, f)?$", unet_module.__doc__, re.MULTILINE)]
    assert sorted(marked) == [layer.row for layer in PnP().A_layers] and PnP().f_layers == (L4,)


def test_v_prediction_gives_the_noise_it_implies(golden_unet, inputs):
    """v = √ᾱ·ε − √(1−ᾱ)·x_0; with x_t = √ᾱ·x_0 + √(1−ᾱ)·ε the noise follows from v and x_t."""
    v_net = UNet(replace(golden_unet.config, prediction="v"))
    v_net.load_state_dict(golden_unet.state_dict())
    x, a = inputs["x"], ALPHA_BAR[501]
    with torch.no_grad():
        v, e = golden_unet(x, 501, inputs["text"]), v_net(x, 501, inputs["text"])
    x_0 = (x - (1 - a) ** 0.5 * e) / a**0.5
    assert relative(a**0.5 * e - (1 - a) ** 0.5 * x_0, v) <= CLOSE
