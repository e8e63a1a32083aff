"""What is made of features: components, matches, clusters, PCK. Known answers first, then the bundled model."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file
from stand_ins import refused

import minipnp
from minipnp.advice import Advice
from minipnp.app.cli import main
from minipnp.app.log import Log
from minipnp.app.seen import Looking, Request, uncropped
from minipnp.ddim import ALPHA_BAR, guided, invert, sample, timesteps
from minipnp.files import hub
from minipnp.files.images import read_image, to_image, to_tensor
from minipnp.guidance import Guidance, silent
from minipnp.layers import attention_map
from minipnp.methods.maps import layers_at
from minipnp.options import Stepped
from minipnp.pnp import PnP, plug_and_play
from minipnp.see import attention, cluster, collect, match, pca, show, spair
from minipnp.see.injection import Variant, fig_5, injections
from minipnp.slots import Layer, Part, Tap, decoder
from minipnp.unet import ATTENTIONS, TABLE

EXAMPLES = hub.WEIGHTS / "bundled" / "examples"
HORSE, CAT = str(EXAMPLES / "horse-noto.png"), str(EXAMPLES / "cat-twemoji.png")
QUICK = ["--model=bundled", "--device=cpu", "--quiet", "--steps=4"]  # levels 751, 501, 251, 1


@pytest.fixture(scope="session")
def load_once():
    return functools.cache(minipnp.load)


@pytest.fixture(scope="session")
def sd(load_once):
    return load_once(hub.WEIGHTS / "bundled", device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def here(tmp_path, monkeypatch, load_once):
    """An empty folder; the model is loaded once for all."""
    monkeypatch.setattr(
        minipnp, "load", lambda path, device, dtype, **_: load_once(path, device=device, dtype=dtype), 0
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(sd, seed: int = 0) -> torch.Tensor:
    return random(1, 3, sd.size, sd.size, seed=seed).clamp(-1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Where x_t comes from, and what is read there


def test_x_t_of_an_inversion_is_that_of_ddim(sd):
    x = picture(sd)
    seen = collect.inverted(sd, x, [501, 251], "a horse", steps=Stepped(4))
    text = sd.embed("a horse")
    with torch.no_grad():
        expected = dict(invert(lambda x, t: sd.unet(x, t, text), sd.encode(x), timesteps(4), "last", 1))
    assert seen.x.keys() == {501, 251} and torch.equal(seen.text, text)
    assert all(torch.equal(seen.x[t], expected[t]) for t in seen.x)  # the same operations, so the same bits


def test_x_t_of_noise_is_equation_1_and_differs_between_seeds(sd):
    a, b = (collect.noised(sd, picture(sd), [300, 1], seed=seed) for seed in (0, 1))
    z = sd.noise(*a.x_0.shape[2:], 0)
    for t in (300, 1):
        expected = ALPHA_BAR[t] ** 0.5 * a.x_0 + (1 - ALPHA_BAR[t]) ** 0.5 * z
        torch.testing.assert_close(a.x[t], expected.float(), atol=1e-6, rtol=1e-6)  # rounding of float32
    assert not torch.equal(a.x[300], b.x[300])


def test_each_noised_file_has_a_noise_of_its_own(sd):
    """With one noise for all, cells of the same place would look alike in any two pictures."""
    job, image = Request([], [], [], Looking(noised=True, seed=5)), to_image(picture(sd))
    for number in (0, 1):
        got = job.x_t(sd, image, "a cat", [300], number, Log(quiet=True))
        expected = collect.noised(sd, to_tensor(image), [300], "a cat", seed=5 + number)
        assert torch.equal(got.x[300], expected.x[300]) and torch.equal(got.text, expected.text)


def test_x_t_of_a_generated_picture_is_met_while_it_is_sampled(sd):
    seen = collect.generated(sd, "a cat", [751, 251], seed=3, steps=Stepped(4), scale=3.0)
    text, null, x_T = sd.embed("a cat"), sd.embed(""), sd.noise(*seen.x_0.shape[2:], 3)
    with torch.no_grad():
        steps = sample(lambda x, t: guided(sd.unet, x, t, text, null, 3.0), x_T, timesteps(4))
        expected = {751: x_T} | dict(steps)
    assert torch.equal(seen.x_0, expected[0]) and torch.equal(seen.text, text)
    assert seen.x.keys() == {751, 251} and all(torch.equal(seen.x[t], expected[t]) for t in seen.x)


def test_features_are_the_taps_at_x_t(sd):
    seen, (layer,) = collect.noised(sd, torch.cat([picture(sd)] * 2, dim=3), [300]), decoder(7)  # twice as wide as high
    side = sd.size // sd.vae.config.factor // 2
    assert collect.cells_of(layer, seen) == (side, 2 * side)
    with torch.no_grad():
        _, tapped = sd.unet.tap(seen.x[300], 300, seen.text, Tap(f=[layer], q=[layer], k=[layer], A=[layer]))
    f, q, k, A = (collect.features(sd, seen, 300, of, [layer])[layer] for of in "fqkA")
    assert f.shape[1:] == q.shape[1:] == (side, 2 * side) and torch.equal(f, tapped.f[layer][0])
    heads = len(tapped.A[layer].q[0])
    back = [rearrange(x, "(heads d) h w -> 1 heads (h w) d", heads=heads) for x in (q, k)]
    torch.testing.assert_close(attention_map(*back)[0].mean(dim=0), A, atol=1e-6, rtol=1e-5)  # rounding of float32
    torch.testing.assert_close(A.sum(dim=1), torch.ones(2 * side * side))


@pytest.mark.parametrize("of", "fqkA")
def test_features_that_are_none(sd, of):
    """As half precision overflows in some models: parts and places would be found in rubbish."""
    seen = collect.noised(sd, picture(sd), [300])
    seen.x[300][0, 0, 3, 3] = torch.nan
    refused(lambda: collect.features(sd, seen, 300, of, decoder(7)), "NaN in the features", "--dtype float32")


def test_timesteps_and_layers_that_are_not_there(sd):
    refused(lambda: collect.levels([540], Stepped(50)), "t = 540", "521 or 541", "999")
    refused(lambda: collect.levels([0], Stepped(50)), "t = 0", "1 to 999")
    refused(lambda: collect.check_layers("q", decoder(1, 4)), "decoder layer 1", "3 to 11")
    assert collect.levels([541], Stepped(50)) == timesteps(50)


def test_by_default_words_are_found_where_prompt_to_prompt_reads_them():
    encoder = (Layer(Part.ENCODER, 7), Layer(Part.ENCODER, 8))
    assert layers_at(Advice().share) == (*encoder, *decoder(3, 4, 5)) and Advice().layer == 4
    assert layers_at(1.0) == (Layer(Part.ENCODER, 1), Layer(Part.ENCODER, 2), *decoder(9, 10, 11))


# ---------------------------------------------------------------------------------------------------------------------
# Components


def test_principal_components_are_those_of_the_svd():
    rows = random(60, 7) @ torch.diag(torch.tensor([5.0, 3, 2, 1, 0.5, 0.2, 0.1])) + 4
    directions = pca.principal(rows)
    expected = torch.linalg.svd(rows.double() - rows.double().mean(dim=0)).Vh[:3].T
    torch.testing.assert_close((directions * expected).sum(dim=0).abs(), torch.ones(3).double(), atol=1e-9, rtol=0)
    assert (directions.gather(0, directions.abs().argmax(dim=0)[None]) > 0).all()
    torch.testing.assert_close(pca.principal(rows.flip(0)), directions)  # not the order of the cells


def test_parts_that_are_alike_share_a_colour_across_pictures():
    kinds = random(3, 20)
    maps = [torch.tensor([[0, 0, 1], [2, 1, 1]]), torch.tensor([[2, 2], [0, 1]])]
    features = [kinds[m].permute(2, 0, 1) + 1e-4 * random(20, *m.shape, seed=i) for i, m in enumerate(maps)]
    (components,) = pca.joint([features])
    assert [c.shape for c in components] == [(3, 2, 3), (3, 2, 2)]
    of_kind = [torch.cat([c[:2, m == kind].T for c, m in zip(components, maps, strict=True)]) for kind in range(3)]
    for kind in range(3):
        assert of_kind[kind].std(dim=0).max() < 1e-3  # the noise
        assert min((of_kind[kind][0] - of_kind[other][0]).norm() for other in range(3) if other != kind) > 1


def test_timesteps_share_directions_and_their_means_are_no_component():
    at_once = random(10, 4, 4)
    far = at_once + 100 * random(10, 1, 1, seed=1)  # the same features, moved as a whole
    (a,), (b,) = pca.joint([[at_once], [far]])
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)  # float32's rounding beside 100
    (alone,) = pca.joint([[at_once]])[0]
    torch.testing.assert_close(a, alone, atol=1e-4, rtol=1e-4)


def test_spread_reaches_both_ends_and_does_not_enlarge_rounding_errors():
    x = torch.stack([torch.tensor([[-3.0, 1.0]]), torch.tensor([[1e-9, 2e-9]])])
    assert pca.spread(x).tolist() == [[[0, 1]], [[0.5, 0.5]]]


def test_components_of_attention_tell_groups_that_attend_to_themselves():
    group = torch.tensor([[0, 0, 1], [0, 1, 1]]).flatten()
    A = (group[:, None] == group[None]).float() / 3
    c = attention.components(A, 2, 3)
    assert c.shape == (3, 2, 3)
    first = c[0].flatten()
    assert (first[group == 0] - first[group == 1].mean()).abs().min() > 0.1
    assert c[1:].abs().max() < 1e-6 and first[group == 0].std() < 1e-6  # there is one difference only


def test_words_are_means_over_steps_layers_and_heads_of_their_tokens(sd):
    prompt, layers, ts = "a horse, snowman", decoder(6, 9), [500, 300]
    seen = collect.noised(sd, picture(sd), ts, prompt)
    found = attention.word_maps(sd, seen, prompt, layers, ts)
    assert [word for word, _ in found] == ["a", "horse,", "snowman"]
    height, width = seen.x_0.shape[2:]
    expected = 0
    for t in ts:
        with torch.no_grad():
            M = sd.unet.tap(seen.x[t], t, seen.text, Tap(M=layers))[1].M
        for layer in layers:
            cells = M[layer].map[0].mean(dim=0)[:, 2:4].sum(dim=1)  # "horse" and ","
            cells = cells.reshape(1, 1, height >> TABLE[layer].level, -1)
            expected += torch.nn.functional.interpolate(cells, (height, width), mode="bilinear")[0, 0] / 4
    torch.testing.assert_close(found[1][1], expected, atol=1e-6, rtol=1e-5)  # the order of sums
    assert len(set(layers) & set(ATTENTIONS)) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Correspondence


def coded(height: int, width: int) -> torch.Tensor:
    """Features that say where they are, by a direction: [3, height, width]."""
    x, y = match.centres(height, width).T.reshape(2, height, width)
    return torch.stack([x - 0.5, y - 0.5, torch.full_like(x, 0.7)])


def test_nearest_finds_a_mirrored_and_a_shifted_place():
    f = coded(12, 16)
    places = match.centres(12, 16)[[18, 50, 100, 150]]  # of cells that the shift does not push out
    found, cosines = match.nearest(f, f, places, 12, 16)
    torch.testing.assert_close(found, places)
    torch.testing.assert_close(cosines, torch.ones(4))
    found, _ = match.nearest(f, f.flip(2), places, 12, 16)
    torch.testing.assert_close(found, torch.stack([1 - places[:, 0], places[:, 1]], dim=1))
    found, _ = match.nearest(f, f.roll(2, dims=2), places, 12, 16)
    torch.testing.assert_close(found, places + torch.tensor([2 / 16, 0]))


def test_places_between_cells_are_found_on_a_finer_grid_and_in_every_block():
    f = coded(8, 8)
    places = torch.tensor([[0.3, 0.4], [0.61, 0.83]])
    found, _ = match.nearest(f, f, places, 160, 160)  # 25,600 pixels: two blocks
    # Linear features are interpolated exactly; only their cosine is measured, on a grid of 1/160.
    assert (found - places).abs().max() <= 0.5 / 160 + 1e-6
    assert len(match.blocks(160, 160)) == 2


def test_features_are_interpolated_as_torch_enlarges_a_picture():
    f = random(5, 6, 4)
    enlarged = torch.nn.functional.interpolate(f[None], (30, 24), mode="bilinear")[0]
    expected = torch.nn.functional.normalize(enlarged.flatten(1).T, dim=1)
    torch.testing.assert_close(match.at(f, match.centres(30, 24)), expected, atol=1e-5, rtol=1e-5)


def write_spair(folder: Path, pairs: dict[str, dict], size=(40, 30)) -> Path:
    """A folder in SPair-71k's layout; the pictures are ramps of red and green, so that their colour says the place."""
    ramp = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(size[0]) * 6, np.arange(size[1])[:, None] * 8
    same = Image.fromarray(ramp)
    made = {"same": same, "flipped": ImageOps.mirror(same), "shifted": Image.fromarray(np.roll(ramp, 8, axis=1))}
    for name, pair in pairs.items():
        images = folder / "JPEGImages" / pair["category"]
        images.mkdir(parents=True, exist_ok=True)
        for image, content in made.items():
            content.save(images / f"{image}.png")
        place = folder / "PairAnnotation" / "test" / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(pair))
    return folder


def pair(target: str, points, expected, category="cat", box=(0, 0, 20, 10)) -> dict:
    return {"src_imname": "same.png", "trg_imname": f"{target}.png", "category": category,
            "src_kps": points, "trg_kps": expected, "trg_bndbox": list(box)}  # fmt: skip


POINTS = [[4, 3], [20, 15], [30, 28]]


def by_colour(path: Path, *_) -> spair.Looked:
    """In the place of a network: the colours themselves, centred so that their direction says the place."""
    image = Image.open(path)
    colours = to_tensor(image)[0]
    return spair.Looked(image, image.size, torch.stack([colours[0], colours[1], torch.full_like(colours[0], 0.7)]))


def test_pck_of_known_pairs(tmp_path):
    mirrored, shifted = [[39 - x, y] for x, y in POINTS], [[x + 8, y] for x, y in POINTS]
    off = [[39 - x, y + (3 if i else 2)] for i, (x, y) in enumerate(POINTS)]  # 2, 3, 3 pixels: within 0.1 · 20 once
    folder = write_spair(tmp_path, {
        "1": pair("same", POINTS, POINTS), "2": pair("flipped", POINTS, mirrored, box=(0, 0, 5, 5)),  # to the pixel
        "3": pair("shifted", POINTS, shifted, "dog"), "4": pair("flipped", POINTS, off, "dog"),
        "5": pair("same", POINTS[:1], [[30, 20]], "dog"),
    })  # fmt: skip
    scores, skipped, drawn = spair.score_pairs(spair.pair_files(folder), folder, by_colour, 0.1)
    assert skipped == [] and len(drawn) == 2
    assert {name: score.correct for name, score in scores.items()} == {
        "1": [True] * 3, "2": [True] * 3, "3": [True] * 3, "4": [True, False, False], "5": [False]
    }  # fmt: skip
    table = {row.pop("category"): row for row in spair.pck_table(scores.values())}
    assert table["cat"] == {"pairs": 2, "points": 6, "per image": 1.0, "per point": 1.0}
    assert table["dog"] == {"pairs": 3, "points": 7, "per image": pytest.approx(4 / 9), "per point": 4 / 7}
    assert table["all"] == {"pairs": 5, "points": 13, "per image": pytest.approx((3 + 1 / 3) / 5), "per point": 10 / 13}


def test_broken_pairs_are_skipped_and_counted_and_the_box_is_the_targets(tmp_path, capsys):
    folder = write_spair(tmp_path, {
        "1": pair("same", POINTS, [[x, y + 2] for x, y in POINTS], box=(5, 5, 10, 25)),  # its longer side is 20
        "2": pair("same", POINTS, POINTS[:2]), "3": pair("gone", POINTS, POINTS),
        "4": pair("same", POINTS, POINTS, box=(5, 5, 5, 5)),
    })  # fmt: skip
    (folder / "PairAnnotation/test/5.json").write_text("{")

    def look(path: Path, *_) -> spair.Looked:
        read_image(path)
        return by_colour(path)

    scores, skipped, _ = spair.score_pairs(spair.pair_files(folder), folder, look, 0.1, silent, Log().failed)
    assert {n: s.correct for n, s in scores.items()} == {"1": [True] * 3}
    assert sorted(s["pair"] for s in skipped) == ["2", "3", "4", "5"]
    assert capsys.readouterr().err.count("; skipped\n") == 4
    refused(lambda: spair.pair_files(folder, "val"), "PairAnnotation/val", "test")
    refused(lambda: spair.pair_files(tmp_path / "none"), "PairAnnotation", "SPair-71k")
    assert [p.stem for p in spair.pair_files(folder, limit=2)] == ["1", "4"]


def test_pixels_and_places_are_inverse_and_half_a_pixel_apart():
    points = torch.tensor([[0.0, 0.0], [39.0, 29.0], [12.0, 7.0]])
    places = spair.places(points, 40, 30)
    torch.testing.assert_close(places[0], torch.tensor([0.5 / 40, 0.5 / 30]))
    torch.testing.assert_close(spair.pixels(places, 40, 30).float(), points, atol=1e-5, rtol=0)


def test_whole_keeps_every_place():
    image = Image.fromarray(np.arange(100 * 60 * 3, dtype=np.uint8).reshape(60, 100, 3))
    assert uncropped(image, 64, 32).size == (96, 64) and uncropped(image.rotate(90, expand=True), 64, 32).size == (
        64,
        96,
    )
    refused(lambda: uncropped(image, 65, 32), "65", "multiple of 32")
    refused(lambda: uncropped(image.resize((500, 60)), 64, 32), "too long")


# ---------------------------------------------------------------------------------------------------------------------
# Clusters


def test_k_means_finds_planted_clusters_the_largest_first_and_repeats():
    kinds = 5 * torch.eye(4, 6)
    of = torch.tensor([2] * 40 + [0] * 25 + [3] * 10 + [1] * 5)
    rows = kinds[of] + 0.1 * random(80, 6)
    centres = cluster.k_means(rows, 4)
    torch.testing.assert_close(centres.float(), kinds[[2, 0, 3, 1]], atol=0.2, rtol=0)  # the noise: 3 · 0.1 / √5
    assert torch.equal(centres, cluster.k_means(rows, 4))
    refused(lambda: cluster.k_means(rows, 81), "81 parts of 80 cells")
    assert cluster.k_means(torch.ones(5, 3), 3).isfinite().all()  # fewer different rows than centres


def test_parts_share_a_colour_across_pictures_whatever_their_brightness():
    kinds = 3 * torch.eye(3, 8)
    maps = [torch.tensor([[0, 0], [0, 1]]), torch.tensor([[2, 2, 1], [0, 2, 0]])]
    features = [(i + 1) * kinds[m].permute(2, 0, 1) for i, m in enumerate(maps)]
    parts = cluster.parts_by_features(features, 3, [tuple(m.shape) for m in maps])
    numbers = {}
    for found, m in zip(parts, maps, strict=True):
        assert found.shape == m.shape
        for kind in range(3):
            numbers.setdefault(kind, set()).update(found[m == kind].tolist())
    assert sorted(map(tuple, numbers.values())) == [(0,), (1,), (2,)] and numbers[0] == {0}


def test_parts_of_attention():
    group = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]])
    same = group.flatten()[:, None] == group.flatten()[None]
    A = torch.where(same, 0.9, 0.1)
    found = cluster.parts_by_attention(A / A.sum(dim=1, keepdim=True), 2, 4, 2)
    assert torch.equal(found, group)


# ---------------------------------------------------------------------------------------------------------------------
# Injection


def test_each_injection_is_what_plug_and_play_makes(golden_unet, inputs):
    steps, x, null, text = 3, inputs["x"], inputs["null"], inputs["text"]
    latents = {t: random(*x.shape, seed=t) for t in timesteps(steps)}
    G = Guidance(latents, latents[667], x, null)
    noise, s = random(*x.shape, seed=9), PnP(steps=steps, tau_f=0.67, tau_A=0.34)
    variants = fig_5(s)
    *_, (_, found) = injections(golden_unet, G, text, null, None, s, noise, variants)
    assert len(found) == len(variants) == 7
    for v, x_0 in zip(variants, found, strict=True):
        own = PnP(steps=steps, tau_f=0.67, tau_A=0.34, f_layers=v.f, A_layers=v.A)
        *_, (_, expected) = plug_and_play(golden_unet, G, [text], null, s=own, x_T=noise if v.random else None)
        torch.testing.assert_close(x_0[None], expected, atol=1e-5, rtol=1e-5)  # float32, steps add up
    different = [torch.dist(found[i], found[j]) for i in range(7) for j in range(i)]
    assert min(different) > 1e-3
    assert [v.random for v in variants] == [False] * 6 + [True] and variants[3] == Variant("neither f nor A")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and commands


def test_heat_is_brighter_for_more_and_palettes_differ():
    grey = torch.tensor([0.3, 0.59, 0.11])
    colours = show.heat(torch.linspace(0, 1, 50)[None])
    assert (torch.einsum("c, chw -> w", grey, colours).diff() > 0).all()
    colours = torch.tensor(show.palette(12)).float()
    assert torch.pdist(colours).min() > 40


def test_matches_are_drawn_at_their_places():
    a, b = Image.new("RGB", (64, 64), "black"), Image.new("RGB", (64, 32), "black")
    page = show.matches(a, b, torch.tensor([[0.25, 0.5]]), torch.tensor([[0.75, 0.25]]), [(250, 10, 10)], least=128)
    assert page.size == (128 + 16 + 256, 128)
    for x, y in ((32, 64), (128 + 16 + 192, 32)):
        assert page.getpixel((x - 6, y)) == (250, 10, 10)  # beside the number
    assert page.getpixel((5, 5)) == (0, 0, 0)


def test_features_of_two_pictures(here, capsys):
    argv = ["features", HORSE, CAT, *QUICK, "--of=f,A,words", "--t=501", "--prompt=a cat", "--raw", "--out=o"]
    assert main(argv) == 0
    names = ["f-t501.png", "A-horse-noto.png", "A-cat-twemoji.png", "words-horse-noto.png", "words-cat-twemoji.png",
             "horse-noto.safetensors", "cat-twemoji.safetensors", "run.json"]  # fmt: skip
    assert capsys.readouterr().out.split() == [f"o/{name}" for name in names]
    settings = json.loads(Path("o/run.json").read_text())["settings"]
    assert settings == json.loads(Image.open("o/f-t501.png").text["minipnp"]) and settings["weights_sha256"].keys() == {
        "unet", "vae", "text_encoder"
    }  # fmt: skip
    assert settings["of"]["f"] == {"layers": [f"decoder {i}" for i in (1, 4, 7, 11)], "t": [501]}
    arrays = load_file("o/horse-noto.safetensors")
    assert arrays.keys() == {*(f"f.decoder{i}.t501" for i in (1, 4, 7, 11)),
                             *(f"A.decoder{i}.t501" for i in (4, 7, 11)), "words"}  # fmt: skip
    with safe_open("o/horse-noto.safetensors", "pt") as file:
        assert json.loads(file.metadata()["minipnp"]) == settings
    assert len(arrays["words"]) == 2 and settings["words"]["horse-noto"] == ["a", "cat"]
    before = Path("o/f-t501.png").read_bytes()
    assert main(argv) == 0 and not Path("o-2").exists() and Path("o/f-t501.png").read_bytes() == before


def test_features_over_timesteps_and_of_a_generated_picture(here):
    argv = ["features", HORSE, "--source=a flat icon of a cat", *QUICK, "--of=q", "--t=251,751", "--out=q.png"]
    assert main(argv) == 0
    settings = json.loads(Path("q.run.json").read_text())["settings"]
    assert settings["of"]["q"]["t"] == [751, 251] and settings["pictures"][1]["source"] == "a flat icon of a cat"
    assert Image.open("q.png").width > 3 * 256  # the picture and two timesteps


def test_correspond_with_itself_finds_the_same_places(here):
    argv = ["correspond", HORSE, HORSE, *QUICK, "--t=501", "--points", "60,70 120,130 200,90", "--out=o"]
    assert main(argv) == 0
    record = json.loads(Path("o/run.json").read_text())
    assert record["settings"]["points"] == [[60, 70], [120, 130], [200, 90]]
    for m, (x, y) in zip(record["matches"], record["settings"]["points"], strict=True):
        assert m["A"] == pytest.approx([(x + 0.5) / 256, (y + 0.5) / 256], abs=1e-6)
        assert m["B"] == pytest.approx(m["A"], abs=1 / 64)  # a pixel of the network's picture
        assert m["cosine"] > 0.99


def test_pck_on_the_bundled_model(here, capsys):
    folder = write_spair(here / "pairs", {
        "1": pair("same", POINTS[:2], POINTS[:2], box=(0, 0, 40, 30)),
        "2": pair("same", POINTS[1:], [[0, 0], [0, 0]], "dog", box=(0, 0, 40, 30)),
    })  # fmt: skip
    argv = ["correspond", f"--pck={folder}", *QUICK, "--t=251", "--prompt=a {category}", "--out=o"]
    assert main(argv) == 0
    record = json.loads(Path("o/run.json").read_text())
    assert record["correct"] == {"1": "11", "2": "00"} and record["skipped"] == []
    assert record["pck"][-1] == {"category": "all", "pairs": 2, "points": 4, "per image": 0.5, "per point": 0.5}
    (folder / "PairAnnotation/test/3.json").write_text("[]")
    assert main([*argv[:-1], "--out=p"]) == 2
    assert "1 of 3 pairs could not be used" in capsys.readouterr().err and Path("p/pck.png").exists()


def test_segment_and_injection(here):
    assert main(["segment", HORSE, CAT, *QUICK, "--t=501", "--parts=3", "--out=s.png"]) == 0
    assert Image.open("s.png").width > 3 * 256
    quick = [*QUICK[:-1], "--steps=2", "--inversion-steps=2"]
    assert main(["injection", HORSE, "--prompt=a flat icon of a cow", *quick, "--out=i.png"]) == 0
    settings = json.loads(Path("i.run.json").read_text())["settings"]
    assert settings["variants"] == [v.label for v in fig_5(PnP(f_layers=(7,)))] and settings["random_x_T"] == 1
    assert Image.open("i.png").width > 4 * 256


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["features"], "no picture"),
        (["features", "gone.png"], "no such file"),
        (["features", HORSE, "--t=540"], "521 or 541"),
        (["features", HORSE, "--of", "A", "--layers=0-4"], "3 to 11"),
        (["features", HORSE, "--layers=12"], "0 to 11"),
        (["features", HORSE, "--layers=none"], "one at least"),
        (["features", HORSE, "--of", "words"], "--prompt"),
        (["features", HORSE, "--of", "words", "--prompt= "], "--prompt"),
        (["features", HORSE, "--of=f,A", "--out=x.png"], "several pictures"),
        (["features", HORSE, "--prompt=a", "--prompt=b"], "2 --prompt for 1"),
        (["features", HORSE, "--seed=3"], "--seed changes nothing"),
        (["features", HORSE, "--steps=0"], "1 to 999"),
        (["features", HORSE, "--noised", "--steps=3"], "--steps changes nothing"),
        (["features", HORSE, "--noised", "--t=1000"], "1 to 999"),
        (["correspond", HORSE], "give two"),
        (["correspond", HORSE, CAT, "--points", "256,3"], "0,0 to 255,255"),
        (["correspond", HORSE, CAT, "--layer=12"], "0 to 11"),
        (["correspond", HORSE, CAT, "--layer=2", "--of=q"], "3 to 11"),
        (["correspond", HORSE, CAT, "--alpha=0.1"], "--pck"),
        (["correspond", "--pck=."], "PairAnnotation"),
        (["correspond", HORSE, "--pck=."], "leave image out"),
        (["correspond", "--pck=.", "--seed=3"], "--seed changes nothing"),
        (["correspond", "--pck=.", "--noised", "--steps=20"], "--steps changes nothing"),
        (["segment", HORSE, "--parts=0"], "1 or more"),
        (["segment", HORSE, "--parts=5000", "--steps=4", "--t=501"], "5000 parts"),
        (["segment", HORSE, "--layer=2"], "3 to 11"),
        (["injection", HORSE], "one --prompt"),
        (["injection", HORSE, CAT, "--prompt=a"], "is one argument too many"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(here, capsys, argv, said):
    assert main([*argv, "--model=bundled", "--device=cpu", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error
    assert list(here.iterdir()) == []
