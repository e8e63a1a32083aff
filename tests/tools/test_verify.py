"""make verify: what it prints and how it ends, on the bundled model; and how it judges the published check values."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HTTPError
from torch.nn import functional as F

from minipnp import load
from minipnp.files.hub import WEIGHTS
from minipnp.layers import FeedForward
from tools.verify import verify
from tools.verify.compare import WHOLE
from tools.verify.verify import SD14, SD15, main

pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput`:FutureWarning")  # diffusers' own affair


def test_the_bundled_model(capsys):
    assert main(["--model", "bundled", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for row in (
        "blocks.0",
        "encoder.levels.0",
        "decoder.mid",
        "encoder.11",
        "middle",
        "decoder.4",
        "the whole network",
    ):
        assert f"  {row} " in out
    assert "FAIL" not in out and "All that was compared agrees" in out
    assert "this model has other sizes  not checked" in out  # SD-1.5's values say nothing about it


def test_a_difference_is_named_and_the_exit_code_1(capsys, monkeypatch):
    def approximate(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(x * F.gelu(gate, approximate="tanh"))

    monkeypatch.setattr(FeedForward, "forward", approximate)
    assert main(["--model", "bundled", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "first layer that differs is encoder.1.transformer.ff.out" in out
    assert "DIFFERENT: UNet" in out and "text encoder" not in out.splitlines()[-1]


def test_what_cannot_be_loaded_ends_in_one_line(capsys):
    assert main(["--model", "no/such/model.safetensors"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_the_reference_it_says_so_in_one_line():
    program = "import sys; sys.modules['diffusers'] = None; from tools.verify.verify import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=WEIGHTS.parent)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == ["verify: the reference is not installed (diffusers): pip install -e '.[test]'"]


def test_the_published_picture_is_made_as_diffusers_makes_it():
    """The same three steps from the same noise in diffusers' pipeline. With the bundled model and less noise: SD-1.4 is
    not here. All the way from the text's embedding to the picture; 1e-4, as for a network.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from tools.verify import reference

    m = load(WEIGHTS / "bundled", device="cpu", dtype="float32")
    schedule = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        reference.like(m.vae), None, None, reference.like(m.unet), schedule, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        prompt_embeds=m.embed(verify.PROMPTS[0]), negative_prompt_embeds=m.embed(""), guidance_scale=7.5,
        num_inference_steps=3, output_type="np",
        latents=torch.from_numpy(np.random.RandomState(0).standard_normal((1, 4, 16, 16))).float(),
    ).images  # fmt: skip
    assert schedule.timesteps.tolist() == [667, 334, 1]
    assert verify.farthest(verify.ddim_picture(m, size=16), image[0, -3:, -3:, -1].flatten().tolist()) <= WHOLE


# ---- how a check value is judged ----


def model(values):
    """A model whose UNet gives these numbers where the published test looks."""

    def unet(x, t, context):
        e = torch.zeros(1, 4, 64, 64)
        e[-1, -2:, -2:, :2] = torch.tensor(values[t]).reshape(2, 2, 2)
        return e

    return SimpleNamespace(unet=unet, device="cpu")


@pytest.mark.parametrize(
    "which, half, of, off, verdict",
    [
        (SD15, False, SD15, 0.0, "pass"),
        (SD15, False, SD15, 0.01, "FAIL"),
        (SD15, False, SD14, 0.0, "FAIL"),
        (SD15, True, SD15, 0.01, "—"),  # the published values are those of the unrounded weights
        (None, False, SD14, 0.0, "pass"),
        (None, False, SD15, 0.01, "—"),  # an unknown model may give anything
    ],
)
def test_the_published_eps(monkeypatch, which, half, of, off, verdict):
    monkeypatch.setattr(verify, "published_noise", lambda seed, shape: torch.zeros(shape))
    values = {t: [v + off for v in values[of]] for (_, t), values in verify.EPS.items()}
    found = list(verify.eps_checks(model(values), which, half))
    assert [check.verdict for check in found] == [verdict, verdict]


@pytest.mark.parametrize("error", [ConnectionError("offline"), HTTPError("[Errno -2] no such host")])
def test_without_a_network_nothing_is_claimed(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    found = list(verify.eps_checks(model({}), SD15, half=False))
    assert [check.verdict for check in found] == ["not checked", "not checked"]
    assert {check.found for check in found} == {f"its input cannot be fetched ({error})"}
