"""What is saved does not change what comes out: each saving beside the plain way of doing the same.

Bit-identical is torch.equal: the same operations in the same order. Where a sum is taken in another order, 1e-6 of the
result's norm is ten float32 roundings; five steps at guidance 7.5 make 1e-4 of that, as in test_golden.py.
"""

import warnings
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from conftest import relative
from torch.nn import functional as F

import minipnp
from minipnp import layers
from minipnp.guidance import Inversion, guidance_from_latent
from minipnp.layers import Attention, Upsample
from minipnp.machine import kept, low_memory
from minipnp.machine.kept import Kept
from minipnp.machine.low_memory import OVERLAP, TILE, LowMemory, decode_in_tiles
from minipnp.machine.shared_softmax import attend_once, share_softmax
from minipnp.machine.speed import compile_blocks, suit
from minipnp.machine.upsampling import FoldedUpsample, unfold
from minipnp.options import Stepped
from minipnp.pipeline import Sampling
from minipnp.pnp import PnP, plug_and_play
from minipnp.slots import Attn, Features, Tap, decoder
from minipnp.unet import UNet

NETWORKS = ("unet", "vae", "text_encoder")
ROOT = Path(__file__).resolve().parents[2]
EDIT = PnP(steps=5, tau_f=0.8, tau_A=0.4)
OPTIONS = {  # under which kept features are those of the edit's own passes
    "the edit's levels": Inversion(steps=5, at="current", iterations=0),
    "fixed point": Inversion(steps=5, at="current", iterations=1),
    "more levels": Inversion(steps=10, at="current", iterations=0),
    "resampled": Inversion(steps=10, at="next", iterations=0, resample=5),
}


@pytest.fixture
def guide(golden_unet, inputs):
    def guide(how, keep=None, features=None):
        with torch.no_grad():
            return guidance_from_latent(golden_unet, inputs["x"], inputs["null"], Stepped(5), how, keep=keep or {},
                                        features=features)  # fmt: skip

    return guide


def edited(unet, inputs, G, s=EDIT):
    *_, (_, x) = plug_and_play(unet, G, [inputs["text"]], inputs["null"], s=s)
    return x


@pytest.fixture
def calls(monkeypatch):
    """Rows of text, and whether it may stop early, of each pass of the network."""
    seen, tap = [], UNet.tap

    def counted(self, x, t, context, wanted, inject=None, stop=False):
        seen.append((len(context), stop))
        return tap(self, x, t, context, wanted, inject, stop)

    monkeypatch.setattr(UNet, "tap", counted)
    return seen


# ---- features kept from the inversion ----


@pytest.mark.parametrize("how", OPTIONS.values(), ids=OPTIONS)
def test_kept_features_make_the_same_picture_to_the_bit(golden_unet, inputs, guide, how):
    plain, keeping = guide(how), guide(how, EDIT.taps())
    assert keeping.x_T.equal(plain.x_T) and not plain.features
    assert all(torch.equal(keeping.latents[t], x) for t, x in plain.latents.items())
    assert sorted(keeping.features) == sorted(EDIT.taps())
    assert torch.equal(edited(golden_unet, inputs, keeping), edited(golden_unet, inputs, plain))


def test_with_kept_features_the_edit_has_no_pass_of_its_own_for_the_guidance(golden_unet, inputs, guide, calls):
    how = Inversion(steps=5, at="current", iterations=0)
    keeping, inversion = guide(how, EDIT.taps()), len(calls)
    assert inversion == 5 + 1  # five steps, and the last level
    edited(golden_unet, inputs, keeping)
    assert calls[inversion:] == [(2, False)] * 5
    plain, before = guide(how), len(calls)
    edited(golden_unet, inputs, plain)
    assert calls[before:] == [(1, True), (2, False)] * 4 + [(2, False)]  # past both thresholds: none either


def test_features_kept_at_the_iterate_before_are_near(golden_unet, inputs, guide):
    """eps(x_t, t') belongs to t', but to the latent before: not equal, and the nearer the finer the inversion.

    So does the default's to a point that is predicted. (A random network is rougher than a trained one, on which
    `tools.experiments kept-features` measures both.)
    """
    distance = {}
    for how in (Inversion(n, at, i) for n in (10, 100) for at, i in (("next", 0), ("last", 1))):
        exact, near = edited(golden_unet, inputs, guide(how)), edited(golden_unet, inputs, guide(how, EDIT.taps()))
        distance[how.at, how.steps] = relative(near, exact)
    assert 0 < distance["next", 100] < distance["next", 10] / 3  # ten times finer
    assert 0 < distance["last", 100] < distance["last", 10] / 5  # measured: 9 times
    assert distance["last", 100] < distance["next", 100]


def test_what_was_not_kept_is_computed(golden_unet, inputs, guide):
    """Features for other thresholds or layers: those that are there are used, the edit is the same as without."""
    how = Inversion(steps=5, at="current", iterations=0)
    for s in (replace(EDIT, tau_A=0.8), replace(EDIT, f_layers=decoder(3, 4)), replace(EDIT, tau_f=0.2, tau_A=0.0)):
        assert torch.equal(
            edited(golden_unet, inputs, guide(how, EDIT.taps()), s), edited(golden_unet, inputs, guide(how), s)
        )


def test_only():
    (L4,), (L5,) = decoder(4), decoder(5)
    x = torch.zeros(1, 1, 1, 1)
    features = Features({L4: x}, {L5: Attn(q=x, k=x + 1)})
    assert features.only(Tap(f=[L4])) == Features({L4: x})
    got = features.only(Tap(q=[L5], k=[L5]))
    assert not got.f and got.A[L5].k is features.A[L5].k
    assert features.only(Tap(f=[L5])) is None and features.only(Tap(q=[L4], k=[L4])) is None
    assert features.only(Tap(s=[L4])) is None and Features(s={L5: x}).only(Tap(s=[L4])) is None
    more = features._replace(s={L4: x + 2, L5: x + 3})
    assert more.only(Tap(s=[L5])) == Features(s={L5: x + 3})
    assert more.only(Tap(f=[L4], s=[L4])) == Features({L4: x}, s={L4: x + 2})
    assert not more.only(Tap(f=[L4])).s and more.only(Tap(f=[L5], s=[L5])) is None


@pytest.mark.parametrize("place", ["device", "memory", "disk", "not beside"])
def test_features_are_the_same_wherever_they_are_kept(golden_unet, inputs, guide, monkeypatch, place):
    room = cycle({"device": [2**40], "memory": [0, 2**40], "disk": [0], "not beside": [2**40]}[place])
    monkeypatch.setattr(kept, "free_memory", lambda device: next(room))
    store, place = Kept(torch.device("cpu"), 4, place != "not beside"), place.replace("not beside", "memory")
    how = Inversion(steps=5, at="current", iterations=0)
    G = guide(how, EDIT.taps(), store)
    assert store.place == place and G.features is store and len(store) == 4
    with monkeypatch.context() as patch:
        patch.setattr(Kept, "__getitem__", lambda *args: pytest.fail("read, to see whether it is there"))
        assert max(store) in store and 1000 not in store
    assert torch.equal(edited(golden_unet, inputs, G), edited(golden_unet, inputs, guide(how)))
    if place == "disk":
        folder = store._folder
        assert len(list(folder.iterdir())) == 4
        del store[max(store)]
        assert len(list(folder.iterdir())) == 3
        store._temporary.cleanup()
        assert not folder.exists()


@pytest.mark.parametrize("place", ["device", "memory", "disk"])
def test_all_kinds_of_features_come_back_from_where_they_are_kept(golden_unet, inputs, monkeypatch, place):
    """f, q and k, and the skip connections s, each to the bit and by its layer; what only one kind has stays so."""
    tap = Tap(f=decoder(4), q=decoder(5, 6), k=decoder(6), s=decoder(0, 4, 5))
    with torch.no_grad():
        _, taken = golden_unet.tap(inputs["x"], 501, inputs["null"], tap)
        _, only_s = golden_unet.tap(inputs["x"], 1, inputs["null"], Tap(s=decoder(4)))
    room = cycle({"device": [2**40], "memory": [0, 2**40], "disk": [0]}[place])
    monkeypatch.setattr(kept, "free_memory", lambda device: next(room))
    store = Kept(torch.device("cpu"), 2)
    store[501], store[1] = taken, only_s
    assert store.place == place
    for got, expected in ((store[501], taken), (store[1], only_s)):
        assert got.f.keys() == expected.f.keys() and got.s.keys() == expected.s.keys()
        assert got.A.keys() == expected.A.keys() and not got.M
        assert all(torch.equal(got.f[layer], f) for layer, f in expected.f.items())
        assert all(torch.equal(got.s[layer], s) for layer, s in expected.s.items())
        for layer, a in expected.A.items():
            for x, y in ((got.A[layer].q, a.q), (got.A[layer].k, a.k)):
                assert (x is None and y is None) or torch.equal(x, y)
    with torch.no_grad():
        z = golden_unet(inputs["x"], 501, inputs["text"], store[501]._replace(A={}))
        assert torch.equal(z, golden_unet(inputs["x"], 501, inputs["text"], taken._replace(A={})))


def test_kept_skip_connections_serve_an_edit(golden_unet, inputs, guide):
    """Stored while inverting, they are those of a pass at the guidance's own latents."""
    wanted = {t: Tap(s=decoder(4, 5)) for t in EDIT.taps()}
    G = guide(Inversion(steps=5, at="current", iterations=0), wanted)
    for t, tap in wanted.items():
        with torch.no_grad():
            _, taken = golden_unet.tap(G.latents[t], t, inputs["null"], tap, stop=True)
        assert all(torch.equal(G.features[t].only(tap).s[layer], s) for layer, s in taken.s.items())


def test_the_first_place_with_room_for_all(monkeypatch):
    features = Features({decoder(4)[0]: torch.zeros(1, 1, 25, 10)})  # 1000 bytes
    monkeypatch.setattr(kept, "free_memory", lambda device: 20_000)
    for levels, place in ((10, "device"), (11, "disk")):  # half of what is free
        store = Kept(torch.device("cpu"), levels)
        store[1] = features
        assert store.place == place


def test_the_place_is_chosen_again_for_the_first_level_with_q_and_k(golden_unet, inputs, guide, monkeypatch):
    """An inversion begins with levels of f alone: room for as many of those is not room for all."""
    how = Inversion(steps=5, at="current", iterations=0)
    sizes = [sum(x.nbytes for x in kept.flat(f).values()) for f in guide(how, EDIT.taps()).features.values()]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 2  # in the order in which they come
    monkeypatch.setattr(kept, "free_memory", lambda device: 2 * 4 * sizes[0])
    store = Kept(torch.device("cpu"), 4)
    G = guide(how, EDIT.taps(), store)
    on_disk = [isinstance(there, Path) for there in store._there.values()]
    assert on_disk == [size > sizes[0] for size in sizes] and len(set(on_disk)) == 2
    assert torch.equal(edited(golden_unet, inputs, G), edited(golden_unet, inputs, guide(how)))


# ---- one softmax for all branches ----


@pytest.fixture
def batches(monkeypatch):
    """Rows of q in each call of the fused kernel."""
    seen, fused = [], F.scaled_dot_product_attention
    counted = lambda q, *args, **how: seen.append(len(q)) or fused(q, *args, **how)  # noqa: E731
    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", counted)
    return seen


def test_one_softmax_serves_all_branches(batches):
    torch.manual_seed(0)
    attention = Attention(32, 32, heads=4)
    share_softmax(attention)
    x, (q, k) = torch.randn(3, 50, 32), torch.randn(2, 1, 4, 50, 8)
    shared, _ = attention(x, inject=Attn(q=q, k=k))
    apart, _ = attention(x, inject=Attn(q=q.expand(3, -1, -1, -1), k=k.expand(3, -1, -1, -1)))
    assert batches == [1, 3] and relative(shared, apart) <= 1e-6


def test_a_head_that_would_be_too_wide_is_not_shared(batches):
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 9, 160), torch.randn(1, 2, 9, 160), torch.randn(2, 2, 9, 160)
    assert relative(attend_once(q, k, v), attend_once(q.expand(2, -1, -1, -1), k, v)) <= 1e-6
    assert batches == [2, 2]
    attend_once(q[..., :128], k[..., :128], v[..., :128])
    assert batches == [2, 2, 1]  # 2 · 128 is just as wide as the kernels go


# ---- upsampling by four small convolutions ----


@pytest.mark.parametrize("shape", [(1, 8, 3, 5), (2, 8, 4, 4), (1, 8, 1, 1)])
def test_upsampling_folded(shape):
    torch.manual_seed(0)
    up, x = Upsample(8), torch.randn(shape)
    with torch.no_grad():
        folded = FoldedUpsample(up)
        assert relative(folded(x), up(x)) <= 1e-6
    assert set(folded.state_dict()) == {"conv.weight", "conv.bias"}


def test_folded_weights_are_summed_in_float32():
    """In half precision each sum is rounded once, and is the nearest number to the sum."""
    torch.manual_seed(0)
    up = FoldedUpsample(Upsample(8).half())
    exact = up.conv.weight[:, :, 1:, 1:].double().sum(dim=(2, 3))
    assert up.quarters.dtype == torch.float16 and torch.equal(up.quarters[0, 0, :, :, 1, 1], exact.half())


def test_a_loaded_model_is_folded_on_the_cpu_and_draws_the_same():
    sd = minipnp.load(ROOT / "weights/bundled", device="cpu")
    ups = [m for network in (sd.unet, sd.vae) for m in network.modules() if isinstance(m, Upsample)]
    assert len(ups) == 3 + 2 and all(isinstance(up, FoldedUpsample) for up in ups)
    x, text = sd.noise(16, 16, 0), sd.embed("a flat icon of a cow")
    with torch.no_grad():
        folded, picture = sd.unet(x, 501, text), sd.decode(x)
        for network in (sd.unet, sd.vae):
            unfold(network)
        # Through a whole network roundings add up: 1e-5, ten times what one layer has.
        assert relative(folded, sd.unet(x, 501, text)) <= 1e-5 and relative(picture, sd.decode(x)) <= 1e-5


def test_only_the_cpu_folds():
    network = torch.nn.Sequential(Upsample(2))
    suit(network, torch.device("mps"))
    assert type(network[0]) is Upsample
    suit(network, torch.device("cpu"))
    assert type(network[0]) is FoldedUpsample


# ---- torch.compile ----


def test_blocks_compile_whole_with_their_slots(golden_unet, inputs):
    """Without a break of the graph, for every kind of slot that Plug-and-Play uses. Backend eager: the same kernels."""
    import copy

    unet, graphs = copy.deepcopy(golden_unet), []

    def eager(graph, inputs):
        graphs.append(graph)
        return graph

    compile_blocks(unet.decoder[4], backend=eager, fullgraph=True)  # a row that takes f and A; all take half a minute
    G = replace(_guidance(golden_unet, inputs), features={})
    assert torch.equal(edited(unet, inputs, G), edited(golden_unet, inputs, G))
    assert len(graphs) >= 4  # ResBlock and transformer, each with its slot filled and empty
    torch._dynamo.reset()


def _guidance(unet, inputs):
    with torch.no_grad():
        return guidance_from_latent(
            unet, inputs["x"], inputs["null"], Stepped(5), Inversion(steps=5, at="current", iterations=0)
        )


# ---- low memory ----


@pytest.fixture(scope="module")
def bundled():
    return minipnp.load(ROOT / "weights/bundled", device="cpu")


def test_low_memory_draws_the_same_and_no_weight_comes_back_from_the_device(bundled, monkeypatch):
    """Beside the UNet comes the text encoder, in its place the VAE. The device is another name of the CPU."""
    sd = minipnp.load(ROOT / "weights/bundled", device="cpu", low_memory=True)
    assert isinstance(sd, LowMemory) and not sd.keeper(1).beside and bundled.keeper(1).beside
    at_rest = {name: [p.data_ptr() for p in getattr(sd, name).parameters()] for name in NETWORKS}
    names = {id(getattr(sd, name)): name for name in NETWORKS}
    there, seen = {"unet"}, []

    def to(network, device):
        assert device == torch.device("cpu", 0)  # never back
        for module in network.modules():
            module._parameters.update({k: torch.nn.Parameter(p.clone(), False) for k, p in module._parameters.items()
                                       if p is not None})  # fmt: skip
        there.add(names[id(network)])
        return network

    def leave(network, weights, assign, load=torch.nn.Module.load_state_dict):
        there.discard(names[id(network)])
        return load(network, weights, assign=assign)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", leave)
    for name, use in (("unet", "forward"), ("vae", "decode"), ("text_encoder", "forward")):
        f = getattr(getattr(sd, name), use)
        monkeypatch.setattr(getattr(sd, name), use, lambda *a, name=name, f=f: seen.append((name, {*there})) or f(*a))
    object.__setattr__(sd, "device", torch.device("cpu", 0))
    what = "a flat icon of a cow", Sampling(steps=2, seed=1)
    assert torch.equal(minipnp.draw(sd, *what), minipnp.draw(bundled, *what))
    text = ("text_encoder", {"unet", "text_encoder"})
    assert seen == [text, text, ("unet", {"unet"}), ("unet", {"unet"}), ("vae", {"vae"})] and there == {"unet"}
    for name in ("vae", "text_encoder"):
        assert [p.data_ptr() for p in getattr(sd, name).parameters()] == at_rest[name]


def test_on_the_cpu_low_memory_holds_each_weight_once(bundled):
    sd = minipnp.load(ROOT / "weights/bundled", device="cpu", low_memory=True)
    before = [p.data_ptr() for name in NETWORKS for p in getattr(sd, name).parameters()]
    sd.embed("a cow")
    x = sd.encode(torch.zeros(1, 3, 64, 64))
    assert torch.equal(sd.decode(x), bundled.decode(x))
    assert [p.data_ptr() for name in NETWORKS for p in getattr(sd, name).parameters()] == before


def test_tiles_cover_every_size_and_overlap():
    for cells in (1, TILE, TILE + OVERLAP + 1, 96, 100, 128, 200):
        starts = low_memory._starts(cells, TILE)
        ends = [min(start + TILE, cells) for start in starts]
        assert starts[0] == 0 and ends[-1] == cells
        assert all(end - start >= OVERLAP for end, start in zip(ends, starts[1:], strict=False))


def test_a_picture_of_one_tile_is_decoded_as_a_whole(bundled):
    x = bundled.noise(16, 24, 0)
    assert torch.equal(decode_in_tiles(bundled, x), bundled.decode(x))


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MemoryError(),
])  # fmt: skip
def test_a_picture_that_memory_is_too_short_for_is_decoded_in_tiles_and_it_is_said(bundled, monkeypatch, error):
    """As on a device where more than 48 cells a side are too many at once; tiles of 32, as --low-memory has 64."""
    decode, x = bundled.vae.decode, bundled.noise(8, 72, 0)

    def tight(x0):
        if max(x0.shape[2:]) > 48:
            raise error
        return decode(x0)

    monkeypatch.setattr(bundled.vae, "decode", tight)
    with pytest.warns(UserWarning, match="decoded in tiles"):
        tiles = bundled.decode(torch.cat([x, x]))
    monkeypatch.undo()
    assert torch.equal(tiles[:1], decode_in_tiles(bundled, x, 32)) and torch.equal(tiles[:1], tiles[1:])
    assert tiles.shape == (2, 3, 32, 288) and not torch.equal(tiles[:1], bundled.decode(x))


def test_another_error_of_the_decoder_is_not_taken_for_a_lack_of_memory(bundled, monkeypatch):
    monkeypatch.setattr(bundled.vae, "decode", lambda x0: torch.zeros(2) @ torch.zeros(3))
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="inconsistent tensor size"):
        warnings.simplefilter("error")  # no word of tiles
        bundled.decode(bundled.noise(8, 8, 0))


def test_tiles_show_no_seam(bundled, monkeypatch):
    """Near the whole picture's decoding (norms see a tile only), and not less near at the seams than elsewhere."""
    monkeypatch.setattr(low_memory, "TILE", 16)
    monkeypatch.setattr(low_memory, "OVERLAP", 4)
    picture = torch.linspace(-1, 1, 160).repeat(1, 3, 160, 1) * torch.linspace(0.5, 1, 160)[:, None]
    x = bundled.encode(picture)
    tiles, whole = decode_in_tiles(bundled, x), bundled.decode(x)
    assert tiles.shape == whole.shape and (tiles - whole).abs().max() < 0.25  # of a range of 2; measured 0.23
    for rows, columns in ((2, 3), (3, 2)):
        step = (tiles - whole).diff(dim=columns).abs().amax(dim=(0, 1, rows))
        assert step[4:-4].max() < 0.05  # the picture's own edges aside. Not blended: 0.16 and 0.09; blended: 0.02
