"""`minipnp evaluate` on a tiny random model: killed and resumed, shared by two processes, with broken pictures."""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import TINY, refused, save_components

from minipnp import load
from minipnp.app import cli
from minipnp.app.log import Log
from minipnp.app.models import identity
from minipnp.guidance import Inversion
from minipnp.measure import benchmarks, records, report
from minipnp.measure.evaluation import RECONSTRUCTION, Plan, carry_out
from minipnp.measure.metrics import Metrics
from minipnp.measure.runs import COMPARED, EVALUATED, MORE, RUNS, check_runs, seed_of
from minipnp.methods.ddim_swap import DDIMSwap
from minipnp.methods.masactrl import MasaCtrl
from minipnp.methods.masked_pnp import MaskedPnP
from minipnp.methods.p2p import P2P
from minipnp.methods.pix2pix_zero import Pix2PixZero
from minipnp.methods.registry import METHODS
from minipnp.methods.sdedit import STRENGTHS, SDEdit
from minipnp.methods.skip_inject import SkipInject
from minipnp.pnp import PnP
from minipnp.weights import NETWORKS
from tools.experiments import __main__ as experiments
from tools.experiments import thresholds

QUIET = Log(quiet=True)
QUICK = ("pnp", "pnp-random", "sdedit-0.5", "ddim", RECONSTRUCTION)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With PyTorch's own random weights, of a size that the networks take, and more colour in what is decoded."""
    torch.manual_seed(0)
    states = {network.folder: network.build(TINY[network.folder]).state_dict() for network in NETWORKS}
    states["vae"]["decoder.conv_out.weight"] *= 3
    return save_components(tmp_path_factory.mktemp("model"), states)


@pytest.fixture(scope="module")
def sd(model):
    return load(model, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A benchmark in the bundled one's layout: four pictures, two prompts each."""
    place = tmp_path_factory.mktemp("icons") / "benchmark"
    place.mkdir()
    rows = []
    for i, concept in enumerate(("cat", "house", "rocket", "horse")):
        pixels = np.full((32, 32, 3), 40 * i, np.uint8)
        pixels[8:24, 4 + 2 * i : 20 + 2 * i] = (250, 60, 10 * i)
        Image.fromarray(pixels).save(place / f"{concept}.png")
        for style in ("flat", "noto"):
            rows.append({
                "image": f"{concept}.png", "source": f"a glossy icon of a {concept}", "word": f"{concept}=elephant",
                "prompt": f"a {style} icon of a elephant", "asked": [style, "elephant", "teal"],
                "kind": "both", "held_out": i > 1,
            })  # fmt: skip
    (place / "benchmark.json").write_text(json.dumps({"pairs": rows}))
    return place


def measures() -> Metrics:
    """Stand in for the networks: figures that follow from the pictures."""
    return Metrics({
        "level": lambda case: {"structure": (case.after - case.before).square().mean().item()},
        "text": lambda case: {"clip": case.after.mean().item()},
    }, {})  # fmt: skip


def plan(folder, methods=QUICK, **options) -> Plan:
    about = {"weights": "tiny"}
    return Plan(benchmarks.read_benchmark(str(folder)), methods, measures(), about, Inversion(steps=4), 2, **options)


def lines_of(place: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(place.glob("*.jsonl")) for line in file.read_text().splitlines()]


def values_of(place: Path) -> dict[str, dict]:
    return {key: record["values"] for key, record in records.read_records(place)[0].items()}


@pytest.fixture(scope="module")
def unbroken(sd, folder, tmp_path_factory):
    """All quick methods in one run: {key: values}."""
    place = tmp_path_factory.mktemp("unbroken")
    carry_out(plan(folder), sd, place, QUIET)
    assert len(lines_of(place)) == 4 * (2 * 4 + 1)
    return values_of(place)


def in_a_process(work) -> multiprocessing.Process:
    """Forked, so that it begins at once."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


# ---------------------------------------------------------------------------------------------------------------------
# Killed, resumed, shared.


def test_killed_ten_times_at_random_moments_it_loses_and_doubles_nothing(sd, folder, unbroken, tmp_path):
    draw = random.Random(0)
    before: dict[str, dict] = {}
    for _ in range(10):
        process = in_a_process(lambda: carry_out(plan(folder), sd, tmp_path, QUIET))
        enough, until = len(before) + draw.randint(0, 2), time.monotonic() + 60
        while process.is_alive() and time.monotonic() < until and len(records.read_records(tmp_path)[0]) < enough:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.04))
        assert process.is_alive()  # there is more to do than ten of these take
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        now = values_of(tmp_path)
        assert before.items() <= now.items()  # nothing is lost
        before = now
    assert 0 < len(before) < len(unbroken)
    carry_out(plan(folder), sd, tmp_path, QUIET)
    assert values_of(tmp_path) == unbroken  # to the bit
    assert len(lines_of(tmp_path)) == len(unbroken)  # nothing is doubled, no part of a line is left


def test_a_torn_last_line_is_cut_off_and_done_again(sd, folder, unbroken, tmp_path):
    few = plan(folder, ("sdedit-0.5",))
    carry_out(few, sd, tmp_path, QUIET)
    (file,) = tmp_path.iterdir()
    whole, content = values_of(tmp_path), file.read_bytes()
    file.write_bytes(content[:-9])
    assert len(records.read_records(tmp_path)[0]) == len(whole) - 1
    carry_out(few, sd, tmp_path, QUIET)
    assert values_of(tmp_path) == whole and len(lines_of(tmp_path)) == len(whole)
    assert whole.items() <= unbroken.items()  # a method's results do not depend on what runs beside it
    file.write_bytes(content.replace(b'"key"', b'"kex"', 1))
    log = Log(quiet=True)
    carry_out(few, sd, tmp_path, log)
    assert values_of(tmp_path) == whole and "1 damaged lines" in log.notes[0]


def test_two_processes_share_the_list(sd, folder, unbroken, tmp_path):
    both = [in_a_process(lambda i=i: carry_out(plan(folder), sd, tmp_path, QUIET, i, 2)) for i in (0, 1)]
    for process in both:
        process.join()
    parts = [len(file.read_text().splitlines()) for file in sorted(tmp_path.iterdir())]
    assert parts == [len(unbroken) // 2] * 2
    assert values_of(tmp_path) == unbroken


def test_a_result_counts_before_an_error_whichever_process_wrote_it(tmp_path):
    result, error = {"key": "a", "values": {"iou": 1.0}}, {"key": "a", "error": "not enough memory"}
    for files in (("0of1", result), ("1of2", error)), (("0of1", error), ("1of2", result)):
        for name, record in files:
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
        assert records.read_records(tmp_path) == ({"a": result}, 0)


def test_a_second_evaluation_at_the_same_place_is_refused(tmp_path):
    writer = records.Writer(tmp_path, "0of1")
    refused(lambda: records.Writer(tmp_path, "0of1"), "another evaluation is writing there")
    records.Writer(tmp_path, "0of2").close()
    writer.close()
    records.Writer(tmp_path, "0of1").close()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_an_evaluation_and_names_the_place(sd, folder, tmp_path, monkeypatch):
    """What is recorded stays, and no pair is recorded as one that failed."""
    with monkeypatch.context() as disk:
        disk.setattr(records.os, "fsync", full)
        refused(lambda: carry_out(plan(folder), sd, tmp_path / "r", QUIET), str(tmp_path / "r"), "no room", "make room")
    known, damaged = records.read_records(tmp_path / "r")
    assert len(known) <= 1 and not damaged
    for what in ("minipnp.machine.kept.Kept.__setitem__", "minipnp.measure.evaluation.original_of"):
        monkeypatch.setattr(what, full)
        with pytest.raises(OSError):
            carry_out(plan(folder), sd, tmp_path / "r", QUIET)
    assert not [record for record in records.read_records(tmp_path / "r")[0].values() if "error" in record]


def test_records_have_the_permissions_of_any_file(tmp_path):
    before = os.umask(0o007)
    try:
        records.Writer(tmp_path, "0of1").close()
    finally:
        os.umask(before)
    assert (tmp_path / "0of1.jsonl").stat().st_mode & 0o777 == 0o660


def test_a_prompt_that_stands_twice_is_done_once(sd, folder, tmp_path):
    p = plan(folder, ("sdedit-0.5",))
    pairs = [p.benchmark.pairs[0], replace(p.benchmark.pairs[0], name="again")]
    p = replace(p, benchmark=replace(p.benchmark, pairs=pairs))
    carry_out(p, sd, tmp_path, QUIET)
    assert len(lines_of(tmp_path)) == 1
    found, _, missing = report.results(p, records.read_records(tmp_path)[0])
    assert len(found["sdedit-0.5"]) == 2 and not missing


def test_results_whose_pictures_are_not_there_are_counted(sd, folder, tmp_path):
    p, log = plan(folder, ("sdedit-0.5",)), Log(quiet=True)
    carry_out(p, sd, tmp_path, log, pictures=tmp_path / "pictures")
    assert not log.notes and len(list((tmp_path / "pictures").rglob("*.png"))) == 8
    carry_out(p, sd, tmp_path, log, pictures=tmp_path / "pictures")
    assert not log.notes
    next((tmp_path / "pictures").rglob("*.png")).unlink()
    carry_out(p, sd, tmp_path, log, pictures=tmp_path / "pictures")
    carry_out(p, sd, tmp_path, log, pictures=tmp_path / "more")
    assert [note.partition(" of ")[0] for note in log.notes] == ["1", "8"]


def test_another_number_of_threads_changes_roundings_only(sd, folder, unbroken, tmp_path):
    """1e-4 of measures without a threshold: float32 sums in another order, rounded to 8 bits before they are taken.

    Of PSNR, decibels of a small difference, 0.02.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        carry_out(plan(folder), sd, tmp_path, QUIET)
    finally:
        torch.set_num_threads(threads)
    found = values_of(tmp_path)
    assert found.keys() == unbroken.keys()
    for key, values in found.items():
        for name, value in values.items():
            assert value == pytest.approx(unbroken[key][name], abs=2e-2 if name == "psnr" else 1e-4)


def test_an_inversion_in_the_edit_s_steps_is_known_by_their_number():
    b = benchmarks.read_benchmark("bundled").some(1)
    keys = {Plan(b, ("pnp",), measures(), {}, how).key("pnp", b.pairs[0], None) for how in (Inversion(), Inversion(50))}
    assert len(keys) == 1
    assert Plan(b, ("pnp",), measures(), {}, Inversion(20)).key("pnp", b.pairs[0], None) not in keys


def test_what_is_done_is_not_done_again_and_other_settings_are(sd, folder, tmp_path, monkeypatch):
    one = ("sdedit-0.5",)
    carry_out(plan(folder, one), sd, tmp_path, QUIET)
    monkeypatch.setattr("minipnp.measure.evaluation.result", lambda *args: pytest.fail("done again"))
    carry_out(plan(folder, one), sd, tmp_path, QUIET)
    base = {job.key for jobs in plan(folder, one).jobs.values() for job in jobs}
    assert len(base) == 8
    others = [
        plan(folder, ("sdedit-0.75",)), plan(folder, one, size=32), replace(plan(folder, one), about={"weights": "x"}),
        replace(plan(folder, one), steps=4),
        replace(plan(folder, one), metrics=Metrics(measures().measures, {"clip": "another"})),
        replace(plan(folder, one), metrics=Metrics({}, measures().weights)),
        replace(plan(folder, one), inversion=Inversion(steps=2)),
    ]  # fmt: skip
    for other in others:
        assert not base & {job.key for jobs in other.jobs.values() for job in jobs}
    p, pair = plan(folder, one), plan(folder, one).benchmark.pairs[0]
    for change in ({"seed": 5}, {"mask": (3, 4)}, {"asked": ("noto", "cat", "red")}, {"source": "x"}, {"prompt": "x"}):
        assert p.key(one[0], replace(pair, **change), None) != p.key(one[0], pair, None), change
    changed = tmp_path / "benchmark"
    shutil.copytree(folder, changed)
    Image.new("RGB", (32, 32)).save(changed / "cat.png")
    assert len(base & {job.key for jobs in plan(changed, one).jobs.values() for job in jobs}) == 6


def test_a_broken_picture_is_said_skipped_counted_and_tried_again(sd, folder, unbroken, tmp_path, capsys):
    broken = tmp_path / "benchmark"
    shutil.copytree(folder, broken)
    (broken / "house.png").write_bytes((broken / "house.png").read_bytes()[:60])
    (broken / "horse.png").unlink()
    p, place = plan(broken), tmp_path / "records"
    assert len(p.benchmark.bad) == 2 and "horse.png" in p.benchmark.bad[0]
    carry_out(p, sd, place, QUIET)
    carry_out(p, sd, place, QUIET)
    assert capsys.readouterr().err.count("house: cannot read the picture") == 2  # once a run, not once a method
    assert len(lines_of(place)) == 3 * 9  # the same failure is not recorded twice
    found, failed, missing = report.results(p, records.read_records(place)[0])
    assert len(failed) == 9 and missing == 0 and len(found["pnp"]) == 4
    assert "Left out: 11" in report.markdown(p, records.read_records(place)[0], "minipnp evaluate")
    shutil.copy(folder / "house.png", broken)
    carry_out(p, sd, place, QUIET)
    mended = records.read_records(place)[0]
    assert report.results(p, mended)[1:] == ([], 0)
    assert {record["values"]["clip"] for record in mended.values() if "clip" in record.get("values", {})} <= {
        values.get("clip") for values in unbroken.values()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Methods.


def test_every_method_runs_and_none_is_another(sd, folder, tmp_path):
    b = benchmarks.read_benchmark(str(folder))
    p = replace(plan(folder, EVALUATED), benchmark=replace(b, pairs=b.pairs[:1]), inversion=Inversion(), steps=6)
    carry_out(p, sd, tmp_path, Log(quiet=True), pictures=tmp_path / "pictures")
    made = {file.stem[:-9]: file.read_bytes() for file in (tmp_path / "pictures/000").iterdir()}
    assert made.keys() == {*EVALUATED}
    assert len(set(made.values())) == len(made), [k for k, v in made.items() if list(made.values()).count(v) > 1]


def test_what_decides_a_model_s_pictures_is_in_its_identity(model, sd):
    """Of one folder's weights: tiles in the place of whole pictures, other sizes, another dtype."""
    low = load(model, device="cpu", dtype="float32", low_memory=True)
    half = load(model, device="cpu", dtype="bfloat16")
    configs = sd.source.configs
    heads = replace(sd.source, configs=configs | {"unet": replace(configs["unet"], heads=1)})
    assert configs["unet"].heads != 1
    others = [identity(m) for m in (sd, low, half, replace(sd, source=heads))]
    assert len({json.dumps(about) for about in others}) == 4


def test_ablations_say_what_is_left_out():
    pair = benchmarks.Pair("p", "g", "a dog", Path("x.png"), "a cat", word="cat=dog")
    made = {name: run.settings_for(pair, {}) for name, run in RUNS.items()}
    assert made["pnp"] == PnP() and made["pnp-without-f"] == PnP(tau_f=0.0)
    assert made["pnp-without-A"] == PnP(tau_A=0.0) and made["pnp-without-both"] == PnP(tau_f=0.0, tau_A=0.0)
    assert made["pnp-random"] == PnP(random_start=seed_of(pair) + 1)  # the guidance may be of the seed itself
    assert RUNS["pnp-random"].settings_for(replace(pair, seed=2**64 - 1), {}).random_start == 0
    assert made["masked-pnp"] == MaskedPnP(word="cat=dog") and made["masactrl"] == MasaCtrl(word="cat=dog")
    assert [made[f"sdedit-{s}"] for s in STRENGTHS] == [SDEdit(strength=s) for s in STRENGTHS]
    assert made["ddim"] == DDIMSwap() and made["skip-inject"] == SkipInject()
    assert made["p2p"] == P2P() and made["p2p-full"] == P2P(cross_replace=1.0, self_replace=1.0)
    assert made["p2p-blend"] == P2P(blend=["cat=dog"])
    a, b, c, d, e = (made[f"p2z-{name}"] for name in "ABCDE")
    assert a == SDEdit(strength=0.5, scale=5.0)
    assert b == Pix2PixZero(lambda_ac=0.0, lambda_kl=0.0, amount=0.0) and c == Pix2PixZero(amount=0.0)
    assert d == Pix2PixZero(amount=0.0, change="cat=dog") and e == Pix2PixZero(change="cat=dog")
    assert made["p2z"] == Pix2PixZero()
    more = replace(pair, source="a red cat", prompt="an old dog")  # of what else changes the words know nothing
    assert RUNS["p2z-E"].settings_for(more, {}).change == "red cat=old dog"
    article = replace(pair, source="a cat", prompt="an elephant", word="cat=elephant")
    assert RUNS["p2z-D"].settings_for(article, {}).change == "cat=elephant"


def test_options_of_all_runs_reach_the_methods_that_have_them():
    """They count before the run's own; what a method does not have passes it by."""
    pair = benchmarks.Pair("p", "g", "a dog", Path("x.png"), "a cat", word="cat=dog")
    for run in RUNS.values():
        s = run.settings_for(pair, {"steps": 7, "scale": 3.5})
        assert (s.steps, s.scale) == (7, 3.5)
    assert RUNS["p2z-A"].settings_for(pair, {}).scale == 5.0
    assert RUNS["pnp"].settings_for(pair, {"start_layer": 3}) == PnP()
    assert RUNS["masactrl"].settings_for(pair, {"start_layer": 3}).start_layer == 3


def test_what_lacks_a_word_or_a_text_is_left_out():
    bare = benchmarks.Pair("p", "g", "a dog", Path("x.png"))
    wordless, both = replace(bare, source="a cat"), replace(bare, source="a cat", word="cat=dog")
    need_text = {"pnp-negative", "ddim", "p2p", "p2p-full", "p2z", "p2z-B", "p2z-C", "p2z-D", "p2z-E"}
    said = {pair: {name: run.lacks(pair) for name, run in RUNS.items() if run.lacks(pair)} for pair in (bare, wordless)}
    assert {name for name, why in said[bare].items() if why == "no word for the object"} == {"masked-pnp", "p2p-blend"}
    assert {name for name, why in said[bare].items() if why == "no text for the picture"} == need_text
    assert set(said[wordless]) == {"masked-pnp", "p2p-blend", "pnp-negative"}
    lacking = {name: run.lacks(both) for name, run in RUNS.items() if run.lacks(both)}
    assert lacking == {"pnp-negative": "meant for the kind silhouette"}
    assert not RUNS["pnp-negative"].lacks(replace(both, kind="silhouette"))
    assert RUNS["masactrl"].settings_for(wordless, {}).word is None  # it may take one


def test_which_runs_are_evaluated_and_compared_if_nothing_else_is_said():
    assert set(EVALUATED) | MORE == set(RUNS) and not set(EVALUATED) & MORE and set(COMPARED) <= set(RUNS)
    assert {RUNS[name].method for name in COMPARED} == set(METHODS)  # none of the methods is left out
    refused(lambda: check_runs(["pnp", "magic", "more"]), "--methods magic,more: give some of pnp, ")
    check_runs(list(RUNS))
    refused(lambda: check_runs(("pnp-random",), COMPARED), "--methods pnp-random: give some of pnp, masked-pnp")


def test_generated_guidance_is_drawn_from_its_seed_and_scale(sd, tmp_path):
    how = [(3, 1.0), (3, 5.0), (4, 5.0)]
    rows = [{"source_prompt": "a cat", "seed": seed, "scale": w, "target_prompts": ["a dog"]} for seed, w in how]
    (tmp_path / "list.yaml").write_text(json.dumps(rows))
    p = plan(tmp_path, ("pnp", "sdedit-0.5", RECONSTRUCTION))
    carry_out(p, sd, tmp_path / "records", QUIET)
    found, failed, missing = report.results(p, records.read_records(tmp_path / "records")[0])
    assert not failed and not missing and len(found["pnp"]) == 3 and not found[RECONSTRUCTION]  # nothing is inverted
    first, second, third = (row.values for row in found["sdedit-0.5"].values())
    assert first != second != third != first  # only the guidance differs


def test_one_inversion_serves_all_prompts_and_methods(sd, folder, tmp_path, monkeypatch):
    import minipnp.methods.original as original

    made = []
    real = original.guidance_from_latent
    monkeypatch.setattr(original, "guidance_from_latent", lambda *args, **more: made.append(1) or real(*args, **more))
    regularised = []
    real_too = original.regularised_inversion
    monkeypatch.setattr(original, "regularised_inversion", lambda *args: regularised.append(1) or real_too(*args))
    carry_out(plan(folder, (*QUICK, "p2z-B", "p2z-C", "p2z-D")), sd, tmp_path, QUIET)
    assert len(made) == 4 * 2  # for each of four pictures one under "", one under its text
    assert len(regularised) == 4 * 2  # one regularised, one not


def test_thresholds_are_compared_on_the_same_pairs(capsys):
    assert experiments.main(["thresholds", "--limit=1", "--steps=2"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == [*thresholds.SETTINGS, *thresholds.SDEDIT]
    layout = [float(row[1]) for row in rows]
    assert all(0 < value <= 1 for value in layout) and layout[4] != layout[0]  # f of more layers changes something


# ---------------------------------------------------------------------------------------------------------------------
# Table and plot.


def test_intervals_are_the_bootstrap_over_guidance_pictures():
    same = report.interval([(f"g{i}", 0.25) for i in range(6)])
    assert same == (0.25, 0.25, 0.25)
    values = [(f"g{i}", float(x)) for i, x in enumerate(np.random.default_rng(1).normal(size=200))]
    once = report.interval(values)
    assert once == report.interval(values)  # seeded
    spread = np.std([x for _, x in values]) / np.sqrt(200)
    assert once.high - once.low == pytest.approx(2 * 1.96 * spread, rel=0.1)  # 2000 draws place a percentile to 5 %
    twice = report.interval([pair for pair in values for _ in range(2)])
    assert twice.mean == pytest.approx(once.mean) and twice.high == pytest.approx(
        once.high
    )  # alike prompts add nothing
    assert np.isnan(report.interval([("g", 1.0), ("g", 2.0)]).low) and str(report.interval([("g", 1.0)])) == "1.000"


def test_the_table_has_every_method_and_the_differences_with_their_sign(sd, folder, unbroken, tmp_path):
    p = plan(folder)
    known = {key: {"key": key, "values": values} for key, values in unbroken.items()}
    text = report.markdown(p, known, "minipnp evaluate bundled")
    for method in QUICK[:-1]:
        assert f"| {RUNS[method].label} | " in text
    assert "8 pairs of 4 guidance pictures" in text and "of 4 pictures." in text
    found = report.results(p, known)[0]
    mean = {name: np.mean([row.values["structure"] for row in found[name].values()]) for name in ("pnp", "ddim")}
    (row,) = re.findall(r"^\| DDIM \+ word swap \| ([+-]\d\.\d+) ", text, re.MULTILINE)
    assert float(row) == pytest.approx(mean["ddim"] - mean["pnp"], abs=6e-4)  # less distance is better; three digits
    partly = dict(list(known.items())[:5])
    assert f"Not done yet: {len(known) - 5} results are missing" in report.markdown(p, partly, "x")


def test_the_verdict_says_on_which_sides_of_zero_the_intervals_lie():
    """Plug-and-Play minus the others; of structure distance less is better, of fidelity more."""
    spread = (0.0, 0.01, 0.02) * 4

    def rows(structure: float, fidelity: float) -> dict[str, report.Result]:
        return {
            f"{i}": report.Result(f"g{i}", {"structure": structure + more, "fidelity": fidelity - more * (-1) ** i})
            for i, more in enumerate(spread)
        }

    found = {
        "pnp": rows(0.1, 0.5), "sdedit-0.25": rows(0.3, 0.2), "sdedit-0.5": rows(0.05, 0.9),
        "sdedit-0.75": rows(0.3, 0.9), "ddim": rows(0.1, 0.5),
    }  # fmt: skip
    _, _, _, *lines = report._differences(found)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[4] for row in cells] == [
        "above, and below on neither", "below, and above on neither", "above on one, below on the other",
        "no difference seen",
    ]  # fmt: skip
    assert cells[0][1].startswith("+0.200") and cells[0][2].startswith("+0.300") and cells[1][1].startswith("-0.050")


def test_of_few_pictures_no_verdict_is_given_and_every_mean_says_of_how_many_it_is():
    def rows(structure: list[float]) -> dict[str, report.Result]:
        return {f"{i}": report.Result(f"g{i}", {"structure": x, "fidelity": 0.5}) for i, x in enumerate(structure)}

    ours, theirs = rows([0.1] * 12), rows([0.2] * 12)
    assert "above, and below on neither" in report._differences({"pnp": ours, "ddim": theirs})[-1]
    few = {name: dict(list(found.items())[:9]) for name, found in (("pnp", ours), ("ddim", theirs))}
    assert "fewer than 10 guidance pictures: not told" in report._differences(few)[-1]
    theirs["3"].values["structure"] = float("nan")
    del theirs["4"].values["structure"]
    assert report.cell(theirs, "structure") == "0.200 [0.200, 0.200], 10 pairs"
    assert report.cell(theirs, "fidelity") == "0.500 [0.500, 0.500]" and report.cell(theirs, "clip") == ""
    assert "| 10 | above, and below on neither |" in report._differences({"pnp": ours, "ddim": theirs})[-1]


def test_the_plot_has_a_colour_for_every_run(folder, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install -e '.[evaluate]'")
    p = replace(plan(folder), methods=tuple(RUNS), steps=None)
    jobs = [job for jobs in p.jobs.values() for job in jobs]
    assert {job.method for job in jobs} >= {"skip-inject", "pnp", "p2z"}
    known = {job.key: {"key": job.key, "values": {"structure": 0.1, "clip": 0.2}} for job in jobs}
    report.plot(p, known, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_plot_is_a_picture_and_needs_both_axes(sd, folder, unbroken, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install -e '.[evaluate]'")
    p = plan(folder)
    known = {key: {"key": key, "values": values} for key, values in unbroken.items()}
    report.plot(p, known, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        colours = {colour for _, colour in plot.convert("RGB").getcolors(1 << 20)}
    assert {(193, 39, 45), (59, 111, 182), (85, 85, 85)} <= colours  # Plug-and-Play, SDEdit, DDIM
    one = {key: {"key": key, "values": {"clip": 0.2}} for key in known}
    refused(lambda: report.plot(p, one, tmp_path / "none.png"), "needs a measure of layout")
    assert not (tmp_path / "none.png").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The command.


def arguments(model, folder, out, *more: str) -> list[str]:
    usual = {"--model": model, "--device": "cpu", "--out": out, "--metrics": "iou", "--steps": 2,
             "--inversion-steps": 2}  # fmt: skip
    given = [str(part) for pair in usual.items() if pair[0] not in more for part in pair]
    return ["evaluate", str(folder), *given, *more]


def test_the_command_leaves_a_table_records_and_what_it_was(model, folder, tmp_path, capsys):
    argv = arguments(model, folder, tmp_path / "out", "--methods", "pnp,sdedit-0.5", "--limit", "3", "--pictures")
    assert cli.main(argv) == 0
    shown = capsys.readouterr()
    assert shown.out.split() == [str(tmp_path / "out" / name) for name in ("results.md", "run.json")]
    assert "the plot needs a measure of layout" in shown.err  # and one of text
    text = (tmp_path / "out/results.md").read_text()
    assert f"# {folder.parent.name}: 3 pairs" in text and "| Plug-and-Play | " in text and "--out" not in text
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["settings"]["methods"] == ["pnp", "sdedit-0.5"] and len(run["settings"]["weights_sha256"]) == 3
    assert len(list((tmp_path / "out/pictures").rglob("*.png"))) == 6
    assert len(lines_of(tmp_path / "out/records")) == 6
    assert cli.main(argv) == 0
    assert "6 results are there, 0 to do" in capsys.readouterr().err
    assert len(lines_of(tmp_path / "out/records")) == 6


@pytest.mark.parametrize("more, said", [
    (["--methods", "magic"], "--methods magic: give some of pnp,"),
    (["--metrics", "beauty"], "--metrics beauty"),
    (["--limit", "0"], "--limit"),
    (["--metrics", "structure", "--measures", "nowhere"], "dino-vit-b-8.safetensors: not there"),
    (["--size", "17"], "--size 17: give a multiple of 16"),
    (["--steps", "0"], "--steps: '0': give a whole number from 1 to 999"),
])  # fmt: skip
def test_mistakes_end_in_one_line(more, said, model, folder, tmp_path, capsys):
    assert cli.main(arguments(model, folder, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and error.splitlines()[-1].startswith("minipnp: error: ")


def test_a_process_of_torchrun_does_its_part_and_the_last_one_makes_the_table(
    model, folder, tmp_path, monkeypatch, capsys
):
    argv = arguments(model, folder, tmp_path / "out", "--methods", "sdedit-0.5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in (("0", False), ("1", True)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(argv) == 0
        assert (tmp_path / "out/results.md").exists() == made
    assert "4 results are missing" in capsys.readouterr().err


@pytest.mark.full
def test_under_torchrun(model, folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "minipnp"]
    argv = arguments(model, folder, tmp_path / "out", "--methods", "pnp,sdedit-0.5")
    subprocess.run([*command, *argv], check=True, timeout=300)
    alone = arguments(model, folder, tmp_path / "alone", "--methods", "pnp,sdedit-0.5")
    assert cli.main(alone) == 0
    assert values_of(tmp_path / "out/records") == values_of(tmp_path / "alone/records")
    assert len(lines_of(tmp_path / "out/records")) == 16 and (tmp_path / "out/results.md").exists()
    assert sorted(file.name for file in (tmp_path / "out/records").iterdir()) == ["0of2.jsonl", "1of2.jsonl"]


def test_the_tiny_model_is_no_constant(sd, unbroken):
    assert torch.isfinite(torch.tensor([v["clip"] for v in unbroken.values() if "clip" in v])).all()
    assert len({v["clip"] for v in unbroken.values() if "clip" in v}) > 28  # of 32
