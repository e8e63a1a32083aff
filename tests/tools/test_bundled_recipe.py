"""The recipe of the bundled model, in small: icons drawn here, networks of a few channels, a few steps of each."""

import base64
import copy
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from minipnp import load
from minipnp.config import TextConfig, UNetConfig
from minipnp.ddim import ALPHA_BAR
from minipnp.errors import InputError
from minipnp.measure import metrics
from minipnp.measure.icons import foreground, iou
from minipnp.tokenizer import Tokenizer
from tools.bundled import (
    benchmark,
    captions,
    classifier,
    evaluate,
    export,
    fetch,
    fixed_loss,
    render,
    train,
    train_unet,
    train_vae,
    training,
)
from tools.bundled.benchmark import Pair, Said, ship
from tools.bundled.captions import Tokens, caption
from tools.bundled.concepts import (
    COLOURS,
    CONCEPTS,
    FINISHED_CONCEPTS,
    FINISHED_STYLES,
    HELD_OUT_CONCEPTS,
    HELD_OUT_STYLE,
    STYLES,
    TRAINED_CONCEPTS,
)
from tools.bundled.data import CONCEPT_WORDS, STYLE_WORDS, Icons, described, draw, generator, placed, plain

SHAPES = {"cat": "ellipse", "dog": "rectangle", "apple": "pieslice", "wolf": "chord"}  # wolf is held back
TINY = ("--device", "cpu", "--size", "64", "--batch", "4")


def shape(concept: str, style: str) -> np.ndarray:
    picture = Image.new("RGBA", (64, 64))
    drawing, n = ImageDraw.Draw(picture), STYLE_WORDS.index(style)
    angles = (0, 240) if SHAPES[concept] in ("pieslice", "chord") else ()
    getattr(drawing, SHAPES[concept])((8, 8, 55, 50), *angles, fill=(25 * n, 255 - 25 * n, 128, 255))
    return np.asarray(picture)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What fetch, render and captions leave behind, for four concepts in all nine styles."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [(style, concept) for style in STYLE_WORDS for concept in SHAPES]
    small = np.stack([shape(concept, style) for style, concept in pairs])
    for side in render.SIDES:
        np.savez_compressed(
            folder / render.file_name(side),
            rgba=small.repeat(side // 64, axis=1).repeat(side // 64, axis=2),
            style=np.array([style for style, _ in pairs]),
            concept=np.array([concept for _, concept in pairs]),
        )
    captions.main(["--data", str(folder)])
    sets = [fetch.licence_of(name, {"info": INFO}) for name in fetch.SETS]
    (folder / "licences.json").write_text(json.dumps(sets))
    return folder


INFO = {"name": "Set", "author": {"name": "A", "url": "u"}, "license": {"spdx": "MIT", "url": "l"}}


def recipe(data, work) -> dict[str, training.State]:
    common = ["--data", str(data), "--work", str(work), *TINY]
    return {
        "vae": train_vae.main([*common, "--samples", "32"]),
        "classifier": classifier.main([*common, "--samples", "32"]),
        "unet": train_unet.main([*common, "--samples", "32", "--channels", "16", "16", "16", "16", "--width", "16"]),
    }


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return work, recipe(data, work)


@pytest.fixture(scope="module")
def exported(data, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    export.export(trained[0], data, folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Training.


def test_the_same_seed_gives_the_same_losses(data, trained, tmp_path):
    first, again = trained[1], recipe(data, tmp_path)
    for name, state in first.items():
        assert len(state.losses) == 8 and state.finished
        assert state.losses == again[name].losses, name  # to the bit
        assert all(torch.equal(x, again[name].average[key]) for key, x in state.average.items()), name
    other = ["--data", str(data), "--work", str(tmp_path / "other"), *TINY, "--samples", "8", "--seed", "1"]
    assert train_vae.main(other).losses[0] != first["vae"].losses[0]


@pytest.mark.parametrize("step, name", [(train_vae, "vae"), (classifier, "classifier"), (train_unet, "unet")])
def test_a_run_broken_off_goes_on_to_the_same_numbers(step, name, data, trained, tmp_path, monkeypatch):
    if name == "unet":
        (tmp_path / "vae.pt").write_bytes((trained[0] / "vae.pt").read_bytes())
    more = ["--channels", "16", "16", "16", "16", "--width", "16"] if name == "unet" else []
    argv = ["--data", str(data), "--work", str(tmp_path), *TINY, "--samples", "32", *more]
    looks = iter([False] * 3 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(training.Clock, "over", lambda self: next(looks))
        assert step.main(argv).step == 3
    state, whole = step.main(argv), trained[1][name]
    assert state.losses == whole.losses
    assert all(torch.equal(x, whole.networks[key]) for key, x in state.networks.items())
    assert all(torch.equal(x, whole.average[key]) for key, x in state.average.items())


TOGETHER = """
import sys, torch
from pathlib import Path
from tools.bundled.training import Clock, Plan, Team, train
team, samples, minutes = Team(together=2), int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
net = torch.nn.Linear(3, 1)

def loss(step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))[team.part :: team.parts]
    return (net(x) - x.sum(dim=1, keepdim=True)).square().mean()

clock = Clock(minutes if team.part == 1 else None)
train("net", net, {}, loss, Plan(batch=8, lr=0.1, samples=samples), Path(sys.argv[1]), clock, team=team)
"""


def apart(plan: training.Plan, steps: int, parts: int = 2) -> torch.nn.Module:
    """What TOGETHER does, in one process: two networks with a part each; every second step, and at last, their mean."""
    torch.manual_seed(0)
    nets = [torch.nn.Linear(3, 1)]
    nets += [copy.deepcopy(nets[0]) for _ in range(parts - 1)]
    optimizers = [torch.optim.AdamW(training._groups(net), lr=plan.lr, betas=(0.9, 0.99)) for net in nets]
    for step in range(steps):
        for part, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = plan.lr_at(step, steps)
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))[part::parts]
            optimizer.zero_grad()
            (net(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
            optimizer.step()
        if step % 2 or step == steps - 1:
            for weights in zip(*(net.parameters() for net in nets), strict=True):
                mean = torch.stack([w.data for w in weights]).mean(dim=0)
                for w in weights:
                    w.data.copy_(mean)
    return nets[0]


def test_two_processes_go_on_from_their_mean_and_stop_at_one_step(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(train_unet.__file__).parents[2])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def run(work, samples, minutes):
        command = [*launch, str(script), str(tmp_path / work), str(samples), str(minutes)]
        subprocess.run(command, check=True, env=env, timeout=120, capture_output=True)
        return training.need(tmp_path / work, "net")

    two, alone = run("two", 40, 1), apart(training.Plan(batch=8, lr=0.1), 5)
    assert two.step == 5 and len(two.losses) == 5
    for name, value in alone.state_dict().items():  # the fused optimiser adds in another order: float32 roundings
        torch.testing.assert_close(two.networks[name], value, rtol=1e-5, atol=1e-6)
    assert run("late", 10**9, 0.1).step < 10**8  # the time of the second only was over


def test_one_command_runs_all_steps_and_stops_in_time(data, tmp_path, monkeypatch, capsys):
    for step in (train_vae, classifier):
        monkeypatch.setitem(step.PLANS, "cpu", training.Plan(batch=4, lr=1e-3, samples=8))
    argv = ["--data", str(data), "--work", str(tmp_path / "work"), "--to", str(tmp_path / "model"), "--device", "cpu"]
    argv += ["--first", "12", "--samples", "8", "--batch", "4"]
    argv += ["--channels", "16", "16", "16", "16", "--width", "16"]
    train.main([*argv, "--minutes", "0"])
    assert "not done yet" in capsys.readouterr().err and not (tmp_path / "model").exists()
    train.main(argv)
    assert "MB after 2 of 2 steps; all is done" in capsys.readouterr().err
    sd = load(tmp_path / "model", device="cpu")
    assert sd.size == 128 and (sd.advice.layer, sd.advice.share) == (7, 1.0)
    trained = json.loads((tmp_path / "model" / "training.json").read_text())
    assert trained["unet"]["about"]["icons"] == 6 * 3 and trained["unet"]["about"]["before"]["step"] == 3
    train.main([*argv, "--from", str(tmp_path / "model"), "--work", str(tmp_path / "again")])
    trained = json.loads((tmp_path / "model" / "training.json").read_text())
    assert trained["unet"]["step"] == 2 and trained["unet"]["about"]["before"]["about"]["before"]["step"] == 3


def test_the_second_phase_begins_from_the_first_one_s_average(data, trained, tmp_path):
    for name in ("vae", "unet"):
        (tmp_path / f"{name}.pt").write_bytes((trained[0] / f"{name}.pt").read_bytes())
    argv = ["--data", str(data), "--work", str(tmp_path), "--device", "cpu", "--size", "128", "--batch", "4"]
    state = train_unet.main([*argv, "--samples", "4", "--lr", "1e-9"])
    assert state.about["unet"]["size"] == 32 and trained[1]["unet"].about["unet"]["size"] == 16
    for name, x in trained[1]["unet"].average.items():
        assert torch.allclose(x, state.networks[name], atol=1e-6), name
    unfinished = training.need(tmp_path, "unet")
    training.write(tmp_path, "unet", replace(unfinished, steps=unfinished.steps + 1))
    with pytest.raises(InputError, match="the first phase is not finished"):
        train_unet.main([*argv, "--samples", "8"])


def test_the_data_are_made_where_they_are_not_there(data, tmp_path, monkeypatch):
    made = []
    for step in (fetch, render, captions):
        monkeypatch.setattr(step, "main", lambda argv, step=step: made.append(step))
    train.prepare(data, 64)
    assert made == []
    train.prepare(data, 256)
    assert made == [fetch, render]
    train.prepare(tmp_path, 64)
    assert made[2:] == [fetch, render, captions]


def test_a_checkpoint_of_another_plan_is_refused(data, trained):
    with pytest.raises(InputError, match=r"another training: samples was 32, is 64; give the same options"):
        train_vae.main(["--data", str(data), "--work", str(trained[0]), *TINY, "--samples", "64"])


def test_training_begins_after_what_it_needs(data, tmp_path):
    with pytest.raises(InputError, match="vae.pt: not there"):
        train_unet.main(["--data", str(data), "--work", str(tmp_path), *TINY])


def test_the_vae_learns_and_its_latents_have_unit_variance(data, trained):
    work, states = trained
    assert states["vae"].losses[-1] < 0.8 * states["vae"].losses[0]
    vae, icons = train_vae.finished_vae(work, torch.device("cpu")), Icons.read(data, 64).trained()
    x, _ = draw(icons, placed(icons, 64, generator(5, 0)))
    assert vae.encode(x).std().item() == pytest.approx(1, abs=0.1)  # other pictures than those it was measured on


def test_branches_begin_at_zero_and_words_that_no_caption_has_say_nothing(data, trained, exported):
    assert trained[1]["unet"].networks["unet.conv_out.weight"].any()  # it was 0 and has learnt
    used = Tokens.read(data).used()
    tokens = load(exported).text_encoder.tokens.weight
    others = torch.ones(len(tokens), dtype=torch.bool)
    others[used] = False
    assert not tokens[others].any() and tokens[used].any(dim=1).all()


def test_the_exported_text_encoder_says_of_a_caption_what_the_trained_one_says(data, trained, exported):
    ids = Tokens.read(data)("", "a flat icon of a dog on a teal background")
    state = trained[1]["unet"]
    configs = UNetConfig(**state.about["unet"]), TextConfig(**state.about["text"])
    both = train_unet.Both(*configs, Tokens.read(data).used())
    both.load_state_dict({key: x.half() if x.is_floating_point() else x for key, x in state.average.items()})
    again = train_unet.Both.load(exported, Tokens.read(data).used())
    assert all(torch.equal(x, again.state_dict()[key]) for key, x in both.state_dict().items())  # goes on from there
    pipe = load(exported)
    x, t = torch.randn(2, 4, 16, 16, generator=generator(0, 0)), torch.tensor([500])
    with torch.no_grad():
        wanted = pipe.unet(x, t, pipe.text_encoder(ids))
        assert torch.allclose(both(x, t, ids), wanted, atol=1e-6 * wanted.abs().max().item())  # float32's rounding


def test_noisy_levels_are_drawn_fully_and_clean_ones_as_seldom_as_min_snr_weighs_them():
    n = 400_000
    drawn = torch.bincount(train_unet.timesteps(n, generator(0, 0)), minlength=1000) / n
    snr = torch.tensor(ALPHA_BAR) / (1 - torch.tensor(ALPHA_BAR))
    weights = snr.clamp(max=5) / snr
    assert weights[0] == pytest.approx(5 * (1 - 0.99915) / 0.99915, rel=1e-3) and weights[999] == 1  # ᾱ_0 = 0.99915
    for some in (slice(0, 100), slice(100, 200), slice(200, 600), slice(600, 1000)):
        share = (weights[some].sum() / weights.sum()).item()
        assert drawn[some].sum() == pytest.approx(share, abs=5 * (share / n) ** 0.5)  # five standard deviations


def test_the_rate_rises_and_falls_on_a_cosine_and_time_can_settle_the_length():
    plan = training.Plan(batch=10, lr=1.0, fit=2.0, warmup=4)
    assert plan.steps() is None and plan.steps(rate=50.0) == 600
    assert [plan.lr_at(step, 100) for step in (0, 3, 50, 100)] == pytest.approx([0.25, 0.9978, 0.5, 0], abs=1e-4)
    flat = training.Plan(batch=10, lr=1.0, samples=1000, warmup=4, cooldown=0.25)
    assert [flat.lr_at(step, 100) for step in (0, 3, 75, 80, 90, 100)] == pytest.approx([0.25, 1, 1, 0.8, 0.4, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Data and captions.


def test_nothing_held_back_is_drawn_or_said(data):
    icons = Icons.read(data, 64)
    assert len(icons) == 36 and len(icons.trained()) == 8 * 3 and len(icons.held_out()) == 12
    for step in range(20):
        g = generator(0, step)
        p = placed(icons.trained(), 64, g)
        for text in described(icons.trained(), p, g):
            assert not {"wolf", HELD_OUT_STYLE} & set(text.split()), text


def test_pictures_are_where_and_what_they_are_said_to_be(data):
    icons = Icons.read(data, 64)
    index = icons.of("noto", "dog")
    x, alpha = draw(icons, plain([index], ["teal"]))
    corner = torch.tensor(COLOURS["teal"]) / 127.5 - 1
    assert torch.allclose(x[0, :, 0, 0], corner, atol=1e-6)
    sides = [(alpha[0, 0] > 0.5).any(dim=i).sum() for i in (0, 1)]
    assert sides == pytest.approx([0.85 * 48, 0.85 * 43], abs=1)  # the rectangle's, in an icon of 0.85 of the side
    left = plain([index], ["teal"])._replace(shift=torch.tensor([[-0.1, 0.0]]))
    mirrored = left._replace(flip=torch.tensor([True]))
    columns = [a.nonzero()[:, 3].float().mean() for a in (alpha, draw(icons, left)[1], draw(icons, mirrored)[1])]
    assert columns[0] - columns[1] == pytest.approx(0.1 * 32, abs=0.5)  # a tenth of half the side
    assert columns[1] == pytest.approx(columns[2], abs=0.5)  # mirrored in its place: the shape is symmetric
    assert iou(foreground(x), alpha[:, 0] > 0.5).item() > 0.9  # but for pixels at the edge, which are of both


def test_captions_read_as_english_and_their_tokens_are_the_tokenizer_s(data):
    assert caption("emojione", "umbrella", "orange") == "an emojione icon of an umbrella on an orange background"
    assert caption(None, "unicorn", None) == "an icon of a unicorn"
    assert caption("flat", "grapes", "blue", bare=True) == "flat grapes on a blue background"
    assert caption("high contrast", "owl", bare=True) == "a high contrast owl"
    tokens, tokenizer = Tokens.read(data), Tokenizer()
    texts = [caption(s, c, "gray", bare) for s in ("noto", "silhouette") for c in TRAINED_CONCEPTS for bare in (0, 1)]
    assert torch.equal(tokens("", *texts), tokenizer("", *texts))
    with pytest.raises(InputError, match="no caption's words: spaceship"):
        tokens("a spaceship")


def test_the_lists_of_the_evaluation_are_what_they_promise():
    lists = benchmark.read()
    pairs = lists["pairs"]
    counts = Counter((pair.kind, pair.held_out) for pair in pairs)
    assert counts == {(kind, held_out): 8 if held_out else 16 for kind in benchmark.KINDS for held_out in (False, True)}
    choosing = Counter((pair.kind, pair.held_out) for pair in lists["choosing"])
    assert choosing == {key: n // 2 for key, n in counts.items()}
    guidance = [pair.guidance[:2] for pair in pairs + lists["choosing"]]
    assert len(set(guidance)) == 144  # no list shares a guidance picture with the other
    for pair in pairs + lists["choosing"]:
        style, concept, _ = pair.guidance
        assert pair.held_out == (style == HELD_OUT_STYLE or concept in HELD_OUT_CONCEPTS)
        assert pair.target.style in FINISHED_STYLES and pair.target.concept in FINISHED_CONCEPTS
        assert (style != pair.target.style) == (pair.kind != "concept")
        assert pair.guidance.colour != pair.target.colour
    assert {said[:2] for said in lists["samples"]} == set(product(FINISHED_STYLES, FINISHED_CONCEPTS))
    assert len(lists["samples"]) == 300 and set(FINISHED_CONCEPTS) <= set(TRAINED_CONCEPTS)
    assert len(HELD_OUT_CONCEPTS) * 10 >= len(CONCEPTS) and set(HELD_OUT_CONCEPTS) <= set(CONCEPT_WORDS)


def test_masks_of_simple_pictures():
    x = torch.full((2, 3, 64, 64), -1.0)
    x[0, :, 16:48, 16:48] = 1
    mask = foreground(x)
    assert mask[0].sum() == 32 * 32 and not mask[1].any()
    half = mask.clone()
    half[0, :, 32:] = False
    assert iou(mask, half).tolist() == [0.5, 1.0]


# ---------------------------------------------------------------------------------------------------------------------
# Icon sets.


def packed(folder, licence: str) -> bytes:
    """An npm package as the registry has it."""
    with tarfile.open(folder / "x.tgz", "w:gz") as tar:
        for name, content in (("icons.json", {"icons": {}}), ("info.json", {**INFO, "license": {"spdx": licence}})):
            body = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return (folder / "x.tgz").read_bytes()


def test_only_the_pinned_package_under_a_free_licence_is_taken(tmp_path, monkeypatch):
    package = packed(tmp_path, "CC-BY-SA-4.0")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, cwd, **__: (Path(cwd) / "x.tgz").write_bytes(package))
    with pytest.raises(InputError, match="not the package that this recipe was written for"):
        fetch.fetch("noto", tmp_path)
    monkeypatch.setitem(fetch.SHA512, "noto", base64.b64encode(hashlib.sha512(package).digest()).decode())
    with pytest.raises(InputError, match="CC-BY-SA-4.0"):
        fetch.fetch("noto", tmp_path)


def test_an_icon_is_found_by_its_first_name_through_aliases_and_flips():
    icons = {
        "width": 32, "height": 32,
        "icons": {"bear-face": {"body": "<b/>"}, "hat": {"body": "<h/>", "width": 64}},
        "aliases": {"bear": {"parent": "bear-face", "hFlip": True}},
    }  # fmt: skip
    found = render.icon_of(icons, render.Concept("bear", "animal", ("ours", "bear")))
    assert found == {"width": 32, "height": 32, "body": "<b/>", "parent": "bear-face", "hFlip": True}
    assert 'scale(-1 1)"><b/>' in render.svg(found) and 'viewBox="0.0 0.0 32 32"' in render.svg(found)
    hat = render.icon_of(icons, render.Concept("hat", "thing", ("hat",)))
    assert 'viewBox="0.0 -16.0 64 64"' in render.svg(hat)  # in the middle of a square
    assert render.icon_of(icons, render.Concept("cat", "animal", ("cat",))) is None


def test_an_icon_is_rendered_with_its_transparency():
    pytest.importorskip("resvg_py", reason="pip install -e '.[train]'")
    rgba = render.pixels(
        render.svg({"body": '<rect width="8" height="16" fill="#f00"/>', "width": 16, "height": 16}), 32
    )
    assert rgba.shape == (32, 32, 4) and rgba[16, 8].tolist() == [255, 0, 0, 255] and rgba[16, 24, 3] == 0


# ---------------------------------------------------------------------------------------------------------------------
# What comes out.


def test_the_exported_model_loads_as_any_other(exported, trained):
    sd = load(exported, device="cpu", dtype="float32")
    assert sd.size == 64 and sd.unet.config.channels == (16, 16, 16, 16)
    assert sd.vae.config.scale == trained[1]["vae"].scale
    average = trained[1]["unet"].average
    for name, x in sd.unet.state_dict().items():
        assert torch.equal(x, average[f"unet.{name}"].half().float()), name
    words = json.loads((exported / "words.json").read_text())
    assert len(words["concepts"]) == 50 and len(words["styles"]) == 6 and "teal" in words["colours"]
    table = (exported / "LICENCES.md").read_text()
    assert all(f"`@iconify-json/{name}` {version}" in table for name, version in fetch.SETS.items())
    assert all(f"| {word} |" in table for word in STYLES.values())


def test_weights_over_the_limit_are_refused(trained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LIMIT", 1000)
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"of before")
    (folder / "EVALUATION.md").write_text("of before")
    with pytest.raises(InputError, match="bytes of weights, over 1,000"):
        export.export(trained[0], data, folder)
    assert {file.read_bytes() for file in folder.rglob("*.*")} == {b"of before"}  # nothing is lost or half-written
    assert list(tmp_path.iterdir()) == [folder]
    monkeypatch.undo()
    export.export(trained[0], data, folder)
    assert load(folder, device="cpu") and not (folder / "EVALUATION.md").exists()  # it was of other weights
    (folder / "EVALUATION.md").write_text("of these")
    export.export(trained[0], data, folder)
    assert (folder / "EVALUATION.md").exists()


def test_training_goes_on_with_an_exported_model(exported, data, tmp_path):
    argv = ["--data", str(data), "--work", str(tmp_path), *TINY, "--from", str(exported)]
    assert train_vae.main(argv).scale == load(exported, device="cpu").vae.config.scale
    assert classifier.main(argv).finished
    before = load(exported, device="cpu").unet.state_dict()
    state = train_unet.main([*argv, "--samples", "4", "--lr", "1e-9"])
    assert all(torch.allclose(x, state.networks[f"unet.{name}"], atol=1e-6) for name, x in before.items())


def test_the_loss_on_fixed_pictures_is_the_same_at_each_call(exported, data, capsys):
    for _ in range(2):
        fixed_loss.main([str(exported), "--data", str(data)])
    first, again = map(float, capsys.readouterr().out.split())
    assert first == again and 0.1 < first < 2  # a network that has learnt nothing is near 1


def test_an_unfinished_network_is_not_taken_for_an_exported_one(exported, data, tmp_path):
    argv = ["--data", str(data), "--work", str(tmp_path), *TINY]
    train_vae.main([*argv, "--samples", "8", "--minutes", "0"])
    with pytest.raises(InputError, match="vae.pt is not finished: leave out --from"):
        train_vae.main([*argv, "--from", str(exported)])


def test_accuracies_are_shares_of_those_on_the_icons_trained_on():
    def row(style, concept, colour, near):
        right = {"style": style, "concept": concept, "colour": colour}
        return right | {"iou": 0.5, "nearest_iou": near, "nearest_cosine": 1}

    records = {
        "real/known/0": row(0.5, 0.8, 1.0, 0.9), "real/concept/0": row(0.4, 0.0, 0.9, 0.7),
        "real/style/0": row(0.0, 0.6, 0.7, 0.7), "sample/0": row(0.2, 0.3, 0.4, 0.8),
        "vae/0": {"psnr": 30.0, "nearest_iou": 0.6, "nearest_cosine": 0.5},
    }  # fmt: skip
    text = evaluate.table(records, [{"psnr": 50.0}], [], SimpleNamespace(steps=50, scale=3.0), "x")
    shares = dict(re.findall(r"^\| (\w+) recognised .*\| ([\d.]+) \|", text, re.MULTILINE))
    expected = {"style": 0.2 / 0.5, "concept": 0.3 / 0.8, "colour": 0.4 / 1.0}
    assert {aspect: float(x) for aspect, x in shares.items()} == pytest.approx(expected, abs=1e-3)  # three digits
    assert "| the icons themselves, placed otherwise | 0.900 | 1.000 |" in text
    assert "| real icons held back | 0.600 | 0.500 |" in text


def test_the_evaluation_measures_everything_once(exported, data, tmp_path, monkeypatch, capsys):
    cat, dog, wolf = Said("noto", "cat", "blue"), Said("flat", "dog", "red"), Said("fx", "wolf", "teal")
    pairs = [Pair("both", False, cat, dog), Pair("style", True, wolf, cat)]
    monkeypatch.setattr(benchmark, "read", lambda: {"pairs": pairs, "samples": [cat, dog], "pictures": [wolf]})
    shipped = tmp_path / "benchmark"
    monkeypatch.setitem(benchmark.SHIPPED, "pairs", shipped)
    ship(Icons.read(data, 64), pairs, shipped)
    work = tmp_path / "work"
    argv = ["--model", str(exported), "--data", str(data), "--records", str(work), "--device", "cpu"]
    steps = ["--steps", "4", "--inversion-steps", "4"]
    same = partial(metrics.load_metrics, classifier=exported / "classifier")  # it is the bundled model's otherwise
    monkeypatch.setattr(metrics, "load_metrics", same)
    looks = count(1)
    monkeypatch.setattr(evaluate.Clock, "over", lambda self: next(looks) % 60 == 0)  # broken off at every 60th record
    for _ in range(10):
        evaluate.main([*argv, *steps])
        if shown := capsys.readouterr().out:
            break
    lines = [line for file in work.rglob("*.jsonl") for line in file.read_text().splitlines()]
    records = [json.loads(line) for line in lines]
    keys = [record["key"] for record in records]
    assert len(keys) == len(set(keys))
    parts = Counter(key.split("/")[0] for key in keys if "/" in key)
    assert parts["vae"] == 1 and parts["sample"] == 2
    known, new_concept, new_style = 6 * 3, 6, 3  # wolf is held back, and fx; blob and emojione are not asked of it
    assert parts["real"] == 4 * (known + new_concept + new_style)
    translations = {(record["pair"], record["method"]) for record in records if "pair" in record}
    each = [name for name in evaluate.METHODS if name not in (evaluate.RECONSTRUCTION, "pnp-negative")]
    assert {(pair, name) for pair in ("000", "001") for name in each} < translations
    for_silhouettes = 1  # "pnp-negative": there is none here
    assert len(translations) == 2 * (len(evaluate.METHODS) - for_silhouettes)
    assert len([record for record in records if "pair" in record]) == len(translations)  # each was made once
    assert shown.strip() == (exported / "EVALUATION.md").read_text().strip()
    for row in ("| VAE, icons held back |", "| Plug-and-Play |", "| Plug-and-Play without both |", "| SDEdit 0.7 | "):
        assert row in shown
