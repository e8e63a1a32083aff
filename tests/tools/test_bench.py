"""make bench-smoke: the benchmark's own code on a small network. Its times are not looked at, its pictures are."""

import json

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import minipnp
from minipnp.ddim import timesteps
from minipnp.guidance import Guidance, Inversion
from minipnp.methods.plug_and_play import evaluations
from minipnp.pnp import PnP, plug_and_play
from tools.bench import __main__ as command
from tools.bench import case as benchmark
from tools.bench import measuring, processes, report, savings, ways
from tools.bench.case import COUNTS, EDIT, SMALL
from tools.bench.savings import OFF
from tools.bench.ways import ALL, FOLDED, KEPT, OWN, TEXT_ONCE, WITHOUT

pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")  # diffusers' own affair


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.full)])
def test_all_ways_make_the_same_edit(compiled, tmp_path, capsys):
    """compiled: by the backend eager, which follows the graphs and leaves the kernels."""
    backend = ["--compile=eager"] if compiled else []
    assert command.main(["--smoke", "--device=cpu", *backend, f"--out={tmp_path}"]) == 0
    result, out = json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr().out
    (size,) = result["sizes"]
    both = {ways.KEPT_COMPILED, ways.OWN_COMPILED} if compiled else set()
    assert set(size["difference"]) == {OWN, WITHOUT, ALL, KEPT, TEXT_ONCE, *OFF, *both}
    assert set(size["evaluation"]) == {"minipnp", "diffusers"} | {
        f"{n}, compiled" for n in ("minipnp", "diffusers") if both
    }
    # Three steps at guidance 7.5 make 1e-5 of float32 roundings; an edit of another picture differs by more than 1e-1.
    assert all(value <= 1e-5 for value in size["difference"].values()), size["difference"]
    assert all(seconds > 0 for kinds in size["steps"].values() for seconds in kinds.values())
    assert size["edit"][ALL] == pytest.approx(
        sum(n * t for n, t in zip(COUNTS, size["steps"][ALL].values(), strict=True))
    )
    assert "| upsampling folded |" in out and "| a further prompt |" in out and "process, from its start" in out
    assert Image.open(tmp_path / "bench.png").width > 500
    assert all(value <= 1e-5 for value in size["changed"].values()) and size["changed"][savings.UPSAMPLING] > 0
    assert "The VAE's decoder" in out and "| --low-memory |" in out
    assert all(0.1 < gb < 4 for gb in result["whole_peak_gb"].values())  # PyTorch's own, and a small model


def test_the_decoder_is_timed_folded_and_not(monkeypatch):
    folded, decode = [], measuring.VAE.decode
    monkeypatch.setattr(measuring.VAE, "decode", lambda vae, x: folded.append(savings.is_folded(vae)) or decode(vae, x))
    assert set(measuring.decoding(SMALL, 8, 2, torch.device("cpu"), torch.float32)) == {"as it is written", "folded"}
    assert folded == [False, True] * 3  # the first pair is to warm up


def test_the_whole_peak_is_of_a_translation_with_and_without_low_memory(monkeypatch):
    """What the two processes run is run here, and looked at."""
    made, load, translate = [], minipnp.load, minipnp.translate
    monkeypatch.setattr(minipnp, "load", lambda *args, **how: made.append(how["low_memory"]) or load(*args, **how))
    monkeypatch.setattr(
        minipnp, "translate", lambda *args, **how: made.append(how["settings"].steps) or translate(*args, **how)
    )
    monkeypatch.setattr(
        processes, "_process", lambda code: exec(code, {"print": lambda gb: made.append(gb > 0)}) or (0, "1")
    )
    processes.whole_peaks(str(processes.WEIGHTS / "bundled"), torch.device("cpu"), torch.float32)
    assert made == [False, 3, True, True, 3, True]


def test_the_peak_of_kept_features_has_those_of_all_steps():
    """f in 40 steps, q and k of 8 layers in 25, in float32: counted from the table of the UNet."""
    case, c = _case(), SMALL.channels
    cells = {4: 2 * 2, 5: 2 * 2, 6: 4 * 4, 7: 4 * 4, 8: 4 * 4, 9: 8 * 8, 10: 8 * 8, 11: 8 * 8}
    width = {4: c[2], 5: c[2], 6: c[1], 7: c[1], 8: c[1], 9: c[0], 10: c[0], 11: c[0]}
    f, A = cells[4] * width[4], 2 * sum(cells[layer] * width[layer] for layer in cells)
    assert ways.size_of_kept(case) == pytest.approx(4 * (40 * f + 25 * A) / 1e9)


def test_the_counts_are_those_of_an_edit():
    assert COUNTS == (25, 15, 10) and sum(COUNTS) == EDIT.steps
    counts = report.work()
    assert counts["authors, first prompt"] == 999 + 999 + 3 * 50 and counts["authors, a further prompt"] == 3 * 50
    assert counts["minipnp, first prompt"] == 51 + 100 == sum(evaluations(PnP(), Inversion(), 1, kept=PnP()).values())
    assert counts["minipnp, first prompt with `--inversion-at current`"] == 50 + 50 + 1 + 100


def test_a_whole_translation_has_the_measured_parts_times_the_counts():
    """The authors' inversion and reconstruction are evaluations of diffusers' network, not of ours."""
    size = {"edit": {OWN: 300.0, KEPT: 200.0}, "evaluation": {"minipnp": 2.0, "diffusers": 3.0}}
    rows = [line.split("|")[1:-1] for line in report.whole(size, report.work()).splitlines()[2:]]
    theirs = f"{(2 * 999 * 3 + 300) / 60:.1f} min"
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["first prompt", theirs, f"{(51 * 2 + 200) / 60:.1f} min", f"{(2 * 999 * 3 + 300) / 302:.3g}"],
        ["first prompt with `--inversion-at current`", theirs, f"{402 / 60:.1f} min", f"{6294 / 402:.3g}"],
        ["a further prompt", "5.0 min", "3.3 min", "1.5"],
    ]


def test_where_upsampling_is_not_folded_the_row_shows_what_folding_would_do(monkeypatch):
    """As on CUDA: the plain network, and a way that folds it and puts it back."""
    monkeypatch.setattr(benchmark, "suit", lambda network, device: network)
    case = _case()
    made = ways.ways(case, {})
    assert FOLDED in made and savings.UPSAMPLING not in made
    *_, plain = made[ALL]()
    *_, folded = made[FOLDED]()
    assert 0 < measuring.largest_difference(folded, plain) <= 1e-5
    assert not savings.is_folded(case.unet)


def test_text_keys_and_values_are_saved_in_every_step():
    """k and v of the text in 16 layers, for 2 branches of 77 tokens, in each of 50 steps: counted from the sizes."""
    counted, c = measuring.operations(SMALL, 8, torch.device("cpu")), SMALL.channels
    layers = [c[0]] * 2 + [c[1]] * 2 + [c[2]] * 2 + [c[3]] + [c[2]] * 3 + [c[1]] * 3 + [c[0]] * 3
    each = sum(2 * 2 * 77 * 2 * SMALL.context * width for width in layers)
    assert counted[KEPT] - counted[TEXT_ONCE] == pytest.approx(50 * each / 1e12)


def test_start_up_can_be_measured_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "start_up", lambda *args: {"ready for the first step": 1.5})
    monkeypatch.setattr(command, "whole_peaks", lambda *args: {"--low-memory": 2.5})
    assert command.main(["--smoke", "--device=cpu", "--start-up", f"--out={tmp_path}"]) == 0
    out, result = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert "| ready for the first step | 1.50 |" in out and "| --low-memory | 2.50 |" in out
    assert result["sizes"] == [] and [file.name for file in tmp_path.iterdir()] == ["bench.json"]


def test_bad_options_are_refused(capsys):
    for option in ("--rounds=0", "--sizes=100"):
        with pytest.raises(SystemExit):
            command.main([option])
    assert "multiples of 64" in capsys.readouterr().err


@pytest.mark.parametrize("saving", OFF)
def test_a_saving_can_be_put_off(saving):
    """Done without, it costs: counted in operations, not timed."""
    torch.manual_seed(0)
    case = _case()
    with_it = _operations(case)
    with OFF[saving](case):
        without = _operations(case)
    assert without > with_it
    assert _operations(case) == with_it  # and it is back


def _case():
    null, text = torch.randn(2, 1, 77, SMALL.context)
    latents = {t: torch.randn(1, 4, 8, 8) for t in timesteps(benchmark.SHORT.steps)}
    unet = benchmark.random_unet(SMALL, torch.device("cpu"), torch.float32)
    return benchmark.Case(unet, Guidance(latents, torch.randn(1, 4, 8, 8), latents[1], null), text, null)


def _operations(case) -> int:
    """Floating-point operations of an edit, and the softmaxes, which the counter of PyTorch leaves out."""
    softmaxes, fused = [], torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, **how):
        softmaxes.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return fused(q, k, v, **how)

    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as flops:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        for _ in plug_and_play(case.unet, case.G, [case.text], case.null, s=benchmark.SHORT):
            pass
    return flops.get_total_flops() + 1000 * sum(softmaxes)
