"""The measures: identical pictures, known changes, and each formula written out on a small random network."""

import json
import math
from dataclasses import replace

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from stand_ins import refused
from torch.nn import functional as F

from minipnp.errors import InputError
from minipnp.files.images import to_image
from minipnp.measure import clip, dino, icons, lpips, metrics, published
from minipnp.measure.benchmarks import Pair
from minipnp.measure.ssim import ssim


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def picture():
    """A square on a ground, 64 × 64."""
    x = torch.full((1, 3, 64, 64), -0.5)
    x[:, 0, 16:40, 20:44] = 0.9
    return x


# ---------------------------------------------------------------------------------------------------------------------
# SSIM.


def test_ssim_is_one_for_the_same_and_the_formula_elsewhere():
    x, y = noise(1, 3, 16, 13), noise(1, 3, 16, 13, seed=1)
    assert ssim(x, x) == pytest.approx(1, abs=1e-12)
    g = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weight = {(i, k): g[i] * g[k] / sum(g) ** 2 for i in range(11) for k in range(11)}
    c_1, c_2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for colour in range(3):
        for top in range(6):
            for left in range(3):
                a, b = ({at: z[0, colour, top + at[0], left + at[1]].item() for at in weight} for z in (x, y))
                mu_a, mu_b = (sum(w * z[at] for at, w in weight.items()) for z in (a, b))
                var_a, var_b = (
                    sum(w * (z[at] - mu) ** 2 for at, w in weight.items()) for z, mu in ((a, mu_a), (b, mu_b))
                )
                cov = sum(w * (a[at] - mu_a) * (b[at] - mu_b) for at, w in weight.items())
                values.append((2 * mu_a * mu_b + c_1) * (2 * cov + c_2)
                              / ((mu_a**2 + mu_b**2 + c_1) * (var_a + var_b + c_2)))  # fmt: skip
    assert ssim(x, y) == pytest.approx(sum(values) / len(values), abs=1e-9)  # float64 in both


def test_ssim_of_a_known_shift_of_level():
    """On flat pictures only the luminance term is left."""
    a, b = torch.full((1, 3, 12, 12), 0.2), torch.full((1, 3, 12, 12), 0.5)
    assert ssim(a, b) == pytest.approx((2 * 0.2 * 0.5 + 0.0004) / (0.04 + 0.25 + 0.0004), abs=1e-6)  # float32 inputs


def test_ssim_refuses_what_its_window_does_not_fit_in():
    refused(lambda: ssim(noise(1, 3, 10, 20), noise(1, 3, 10, 20)), "11 × 11")
    refused(lambda: ssim(noise(1, 3, 20, 20), noise(1, 3, 20, 24)), "one size")


# ---------------------------------------------------------------------------------------------------------------------
# DINO structure distance.


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_base_patch8_224.dino", pretrained=False, img_size=32, embed_dim=24, depth=3, num_heads=4
    ).eval()


def test_structure_distance_is_the_formula(vit):
    x, y = noise(1, 3, 48, 48), noise(1, 3, 48, 48, seed=1)
    found = {}

    def reference(picture):
        """By hooks, as the authors have it: the keys of every head, one behind the other."""
        pixels = F.interpolate((picture + 1) / 2, (32, 32), mode="bilinear", antialias=True)
        pixels = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        hook = vit.blocks[-1].attn.qkv.register_forward_hook(lambda module, args, out: found.update(qkv=out))
        with torch.no_grad():
            vit(pixels)
        hook.remove()
        k = found["qkv"].reshape(17, 3, 4, 6)[:, 1].reshape(17, 24)  # class token and 16 patches
        return torch.tensor([[(a @ b / (a.norm() * b.norm())).item() for b in k] for a in k])

    expected = ((reference(x) - reference(y)) ** 2).mean().item()
    assert dino.structure_distance(vit, x, y) == pytest.approx(expected, rel=1e-4)  # float32, another order of sums
    assert dino.structure_distance(vit, x, x) == 0


def test_structure_distance_sees_a_shift_from_either_side(vit, picture):
    moved, flipped = picture.roll(16, dims=3), picture.flip(2)
    assert dino.structure_distance(vit, picture, moved) > 1e-6 < dino.structure_distance(vit, picture, flipped)
    assert dino.structure_distance(vit, picture, moved) == dino.structure_distance(vit, moved, picture)


def test_the_published_dino_has_785_keys_of_768():
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch8_224.dino", pretrained=False)
    assert model.patch_embed.num_patches + model.num_prefix_tokens == 785
    assert model.blocks[-1].attn.qkv.out_features == 3 * 768 and len(model.blocks) == 12
    assert model.norm_pre(torch.zeros(1, device="meta")).shape == (1,) and not model.blocks[-1].attn.q_norm.state_dict()


# ---------------------------------------------------------------------------------------------------------------------
# CLIP.


@pytest.fixture(scope="module")
def small_clip():
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
    model = open_clip.CLIP(16, vision, {"width": 32, "heads": 2, "layers": 2}).eval()
    return clip.Clip(model, open_clip.get_tokenizer("ViT-L-14-quickgelu"), clip.preprocessing(32))


def test_clip_score_is_the_cosine_of_the_two_embeddings(small_clip, picture):
    texts = ["a red square", "a sketch of a horse"]
    scores = small_clip.score(picture, *texts)
    pixels = small_clip.look(to_image(picture))[None]
    with torch.no_grad():
        image = small_clip.model.encode_image(pixels)[0]
        for score, text in zip(scores.tolist(), texts, strict=True):
            embedding = small_clip.model.encode_text(small_clip.tokenizer([text]))[0]
            cosine = (image * embedding).sum() / ((image**2).sum().sqrt() * (embedding**2).sum().sqrt())
            assert score == pytest.approx(cosine.item(), abs=1e-5)  # float32
    assert torch.equal(small_clip.score(picture, *texts), scores)
    assert small_clip.closer(picture, texts[0], texts[1]) == bool(scores[0] > scores[1])
    assert small_clip.closer(picture, texts[1], texts[0]) == bool(scores[1] > scores[0])


def test_clip_s_input_is_the_centre_at_its_size_with_openai_s_means():
    look = clip.preprocessing(32)
    grey = look(to_image(torch.zeros(1, 3, 64, 96)))
    assert grey.shape == (3, 32, 32)
    level = 128 / 255
    means, deviations = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for colour, mean, deviation in zip(grey, means, deviations, strict=True):
        assert colour.unique().tolist() == pytest.approx([(level - mean) / deviation], abs=1e-6)
    wide = torch.full((1, 3, 32, 96), -1.0)
    wide[..., 32:64] = 1
    assert look(to_image(wide))[:, :, 4:-4].min() > 0  # only the middle third is seen, but for the crop's edges


# ---------------------------------------------------------------------------------------------------------------------
# Background LPIPS.


@pytest.fixture(scope="module")
def squeeze():
    pytest.importorskip("torchmetrics", reason="pip install -e '.[evaluate]'")
    torch.manual_seed(0)
    return lpips.network()


def test_lpips_is_the_formula_outside_the_mask(squeeze, picture):
    changed = picture + 0.1 * noise(1, 3, 64, 64)
    mask = picture[:, 0] > 0
    assert lpips.background_lpips(squeeze, picture, picture, mask) == 0
    total = 0.0
    a, b = (torch.where(mask[:, None], torch.tensor(-1.0), z) for z in (picture, changed))
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    a, b = (a - shift) / scale, (b - shift) / scale
    for layer, linear in zip(squeeze.net.slices, squeeze.lins, strict=True):
        a, b = layer(a), layer(b)
        unit_a, unit_b = (z / (z.square().sum(dim=1, keepdim=True) + 1e-8).sqrt() for z in (a, b))
        w = linear.model[-1].weight[0, :, 0, 0]
        total += ((unit_a - unit_b).square() * w[:, None, None]).sum(dim=1).mean().item()
    assert lpips.background_lpips(squeeze, picture, changed, mask) == pytest.approx(total, rel=1e-4)  # float32
    assert total > 0


def test_what_changes_inside_the_mask_alone_does_not_count(squeeze, picture):
    mask = picture[:, 0] > 0
    inside = torch.where(mask[:, None], torch.tensor(0.3), picture)
    assert lpips.background_lpips(squeeze, picture, inside, mask) == 0
    assert lpips.background_lpips(squeeze, picture, inside, torch.zeros_like(mask)) > 0


def test_lpips_takes_torchvision_s_weights_into_their_places(squeeze, tmp_path):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(3)
    trunk = squeezenet1_1(weights=None)
    torch.save(trunk.state_dict(), tmp_path / published.SQUEEZENET.file)
    loaded = lpips.load_lpips(tmp_path)
    x = noise(1, 3, 64, 64)
    y = x
    for layer in loaded.net.slices:
        y = layer(y)
    assert torch.equal(y, trunk.features(x))
    assert sum(p.abs().sum() for p in loaded.lins.parameters()) > 0


# ---------------------------------------------------------------------------------------------------------------------
# Icons.

WORDS = icons.Vocabulary(("flat", "noto"), ("cat", "house", "rocket"), ("white", "blue"))


def test_the_classifier_comes_back_from_its_folder_and_reads_any_size(tmp_path):

    torch.manual_seed(0)
    classifier = icons.Classifier(WORDS, 64, (16, 16)).eval()
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(classifier.config))
    again = icons.load_classifier(tmp_path)
    x = noise(5, 3, 64, 64)
    best = [scores.argmax(dim=1).tolist() for scores in classifier(x)]
    expected = [(WORDS.styles[s], WORDS.concepts[c], WORDS.colours[g]) for s, c, g in zip(*best, strict=True)]
    assert again.read(x) == expected and again.words == WORDS
    larger = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert [len(words) for words in again.read(larger)] == [3] * 5

    (tmp_path / "config.json").write_text(json.dumps({**classifier.config, "styles": ["flat"]}))
    refused(lambda: icons.load_classifier(tmp_path), "other words or widths")
    (tmp_path / "config.json").write_text("{")
    refused(lambda: icons.load_classifier(tmp_path), "damaged")
    refused(lambda: icons.load_classifier(tmp_path / "none"), "classifier", "missing", "--metrics iou")


def test_masks_and_their_iou_under_a_known_shift(picture):
    mask = icons.foreground(picture)
    assert mask.sum() == 24 * 24 and torch.equal(mask[0], picture[0, 0] > 0)
    moved = icons.foreground(picture.roll(6, dims=3))
    assert icons.iou(mask, mask).item() == 1
    assert icons.iou(mask, moved).item() == pytest.approx(18 / 30)  # 24 columns, 6 of them moved out
    empty = torch.zeros_like(mask)
    assert icons.iou(empty, empty).item() == 1 and icons.iou(mask, empty).item() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Where the networks come from.


@pytest.mark.parametrize("network", [published.CLIP, published.DINO, published.SQUEEZENET])
def test_what_is_missing_is_said_in_one_line(network, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    refused(
        lambda: published.find_published(network, tmp_path),
        network.file,
        "not there",
        network.source,
        "--metrics icons iou",
    )
    refused(
        lambda: published.find_published(network), network.what, network.file, "HF_HUB_OFFLINE", "--metrics icons iou"
    )
    (tmp_path / network.file).write_bytes(b"x")
    assert published.find_published(network, tmp_path) == tmp_path / network.file


def test_a_download_that_was_damaged_is_refused(tmp_path, monkeypatch):
    import huggingface_hub as hf

    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"not the weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(hf, "hf_hub_download", lambda *args, **options: str(link))
    refused(lambda: published.find_published(published.DINO), "damaged", "0" * 64)
    place = tmp_path / "hub" / "checkpoints" / published.SQUEEZENET.file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not the weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    refused(lambda: published.find_published(published.SQUEEZENET), "damaged", "b8a52dc0")


def test_a_metric_that_a_benchmark_cannot_have_is_refused(tmp_path):
    refused(lambda: metrics.load_metrics(["beauty"], "ti2i"), "beauty", "structure")
    refused(lambda: metrics.load_metrics(["iou"], "ti2i"), "no icons", "clip, structure")
    refused(lambda: metrics.load_metrics(["background"], "ti2i"), "no masks")
    refused(lambda: metrics.load_metrics(["icons"], "bundled", classifier=tmp_path), "classifier", "missing")
    with pytest.raises(InputError, match="dino-vit-b-8.safetensors: not there"):
        metrics.load_metrics(["iou", "structure"], "bundled", tmp_path)
    (tmp_path / published.DINO.file).write_bytes(b"no weights")
    refused(lambda: metrics.load_metrics(["structure"], "bundled", tmp_path), published.DINO.file, "damaged")


def test_clip_and_dino_are_loaded_from_a_folder(small_clip, vit, tmp_path, monkeypatch, picture):
    """By their published names, in small: the same code finds architecture, file and activation."""
    small = {"embed_dim": 16, "quick_gelu": True,
             "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
             "text_cfg": {"width": 32, "heads": 2, "layers": 2}}  # fmt: skip
    assert open_clip.get_model_config("ViT-L-14-quickgelu")["quick_gelu"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-L-14-quickgelu", small)
    save_file(small_clip.model.state_dict(), tmp_path / published.CLIP.file)
    loaded = clip.load_clip(tmp_path)
    state = small_clip.model.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in loaded.model.state_dict().items())
    assert "QuickGELU" in repr(loaded.model) and "QuickGELU" not in repr(small_clip.model)

    real = timm.create_model
    smaller = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 4}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: real(name, **options, **smaller))
    save_file(vit.state_dict(), tmp_path / published.DINO.file)
    assert torch.equal(dino.keys(dino.load_dino(tmp_path), picture), dino.keys(vit, picture))


# ---------------------------------------------------------------------------------------------------------------------
# What each measure is given.


@pytest.fixture
def case():
    """Two pictures that can be told, not square, and a pair with all that a measure may ask for."""
    pair = Pair("p", "g", "a dog", source="a cat", mask=(512 * 100 + 40, 60), asked=("noto", "dog", "blue"))
    return metrics.Case(pair, noise(1, 3, 40, 64), noise(1, 3, 40, 64, seed=1))


def test_clip_looks_at_the_edit_and_the_prompt(case):
    class Network:
        def score(self, picture, text):
            return torch.tensor(0.25) if (picture is case.after and text == "a dog") else torch.tensor(math.nan)

        def closer(self, picture, text, other):
            return picture is case.after and (text, other) == ("a dog", "a cat")

    assert metrics._clip(Network(), case) == {"clip": 0.25}
    assert metrics._clip_acc(Network(), case) == {"clip_acc": 1.0}
    assert metrics._clip_acc(Network(), case._replace(pair=replace(case.pair, source=""))) == {}


def test_the_background_is_what_the_mask_leaves(case, monkeypatch):
    given = []
    monkeypatch.setattr(lpips, "background_lpips", lambda *args: given.append(args) or 0.5)
    assert metrics._background("network", case) == {"background": 0.5}
    (network, before, after, mask) = given.pop()
    assert network == "network" and before is case.before and after is case.after
    assert mask.shape == (1, 40, 64) and torch.equal(mask[0], torch.from_numpy(case.pair.mask_at(64, 40)))
    metrics._background("network", case._replace(pair=replace(case.pair, mask=None)))
    assert torch.equal(given.pop()[3], icons.foreground(case.before))


class Certain:
    def sure_of(self, picture):
        return {"style": {"fx": 1.0}, "concept": {"cat": 1.0}, "colour": {"none": 1.0}}


def test_the_classifier_reads_the_edit_aspect_by_aspect(case):
    class Judge:
        def sure_of(self, picture):
            assert picture is case.after
            style, concept, colour = case.pair.asked
            return {
                "style": {style: 0.9, "fx": 0.1},
                "concept": {concept: 0.1, "an elephant": 0.9},
                "colour": {"none": 0.4, colour: 0.5},
            }

    got = metrics._icons(Judge(), case)
    right = {"style": 1.0, "concept": 0.0, "colour": 1.0}
    assert got == {**right, "fidelity": 2 / 3, "probability": pytest.approx(0.5)}
    unknown = case._replace(pair=replace(case.pair, asked=("fx", "a word that it does not know", "none")))
    assert metrics._icons(Certain(), unknown) == {
        "style": 1.0, "concept": 0.0, "colour": 1.0, "fidelity": 2 / 3, "probability": 2 / 3
    }  # fmt: skip


def test_the_classifier_is_as_sure_of_an_aspect_as_its_softmax():
    classifier, x = icons.Classifier(WORDS, 32, (16, 16)).eval(), noise(1, 3, 64, 64)
    small = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    for aspect, words, logits in zip(icons.ASPECTS, WORDS, classifier(small), strict=True):
        found = classifier.sure_of(x)[aspect]
        assert tuple(found) == words
        sure = list(found.values())
        assert sure == pytest.approx(logits[0].softmax(dim=0).tolist(), abs=1e-6) and sum(sure) == pytest.approx(1)


def test_leakage_is_the_guidance_s_style_and_its_colours(picture):
    """A red square on grey: gone to the same red it keeps all, to cyan as little as can be, and the style is asked."""

    class Judge:
        def sure_of(self, x):
            return {"style": {"noto": 0.7, "flat": 0.3}}

    def square(*rgb):
        x = torch.zeros(1, 3, 64, 64)
        x[0, :, 16:40, 20:44] = torch.tensor(rgb).reshape(3, 1, 1)
        return x

    red, cyan = square(1.0, -1.0, -1.0), square(-1.0, 1.0, 1.0)
    pair = Pair("p", "g", "a flat icon of a cat", source="a noto icon of a cat", asked=("flat", "cat", "blue"))
    kept = metrics._leakage(Judge(), metrics.Case(pair, red, red))
    assert kept == {"style_left": 0.7, "colour_left": pytest.approx(1)}
    assert metrics._leakage(Judge(), metrics.Case(pair, red, cyan))["colour_left"] == pytest.approx(0, abs=1e-6)
    same = replace(pair, asked=("noto", "cat", "blue"))  # its style is to stay
    assert metrics._leakage(Judge(), metrics.Case(same, red, torch.zeros(1, 3, 64, 64))) == {}  # and nothing to be seen


def test_edges_are_those_of_guidance_and_translation(case, picture):
    assert metrics._edges(case._replace(before=picture, after=picture)) == {"edges": pytest.approx(1)}


def test_the_overlap_is_of_the_two_pictures_foregrounds(case, picture):
    moved = torch.roll(picture, 6, dims=3)  # 24 of 24 + 6 columns
    assert metrics._iou(case._replace(before=picture, after=moved)) == {"iou": pytest.approx(18 / 30)}
