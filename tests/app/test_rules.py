"""Rules that silently decide pictures, seen from the outside: the shell's picture against the algorithm called by hand.

On the bundled model, whose latent has 32 × 32 cells: maps of words are read at its whole side, not at SD-1.5's quarter.
"""

from dataclasses import replace

import pytest
import torch
from shell import CAT, PROMPT, SAYS, SOURCE, pixels, translate

import minipnp
from minipnp.files import hub
from minipnp.files.images import fit, read_image, to_image, to_tensor
from minipnp.guidance import Inversion, guidance_from_latent
from minipnp.methods.align import word_swap
from minipnp.methods.masactrl import MasaCtrl, masactrl
from minipnp.methods.masked_pnp import Mask, Word, masked_plug_and_play
from minipnp.methods.p2p import P2P, LocalBlend, WordEdit, prompt_to_prompt
from minipnp.methods.words import positions
from minipnp.options import Stepped
from minipnp.pnp import PnP

pytest_plugins = ["shell_fixtures"]
pytestmark = pytest.mark.usefixtures("here")
STEPS = 4
MORE = [f"--steps={STEPS}", "--scale=3", "--out=o"]


@pytest.fixture
def cat(load_once):
    """The model, the cat's latent, and the embeddings of source, prompt and nothing."""
    sd = load_once(hub.WEIGHTS / "bundled", device="cpu")
    x_0 = sd.encode(to_tensor(fit(read_image(CAT), sd.size, sd.multiple)))
    return sd, x_0, sd.embed(SOURCE), sd.embed(PROMPT), sd.embed("")


def same(sd, steps) -> bool:
    """Whether the shell's picture is that of the last of these steps, pixel by pixel."""
    with torch.no_grad():
        *_, (_, x) = steps
    to_image(sd.decode(x)).save("expected.png")
    return pixels("o/translation.png") == pixels("expected.png")


@pytest.mark.parametrize("at, kept", [("next", False), ("current", True)])
def test_features_of_the_inversion_serve_the_edit_only_where_they_are_those_of_its_latents(cat, at, kept, passes):
    """With eps(x_t, t') they are those of the iterate before: the edit makes its own passes."""
    sd, *_ = cat
    how = Inversion(at=at, iterations=0)
    assert translate("pnp", f"--inversion-at={at}", "--fixed-point=0", *MORE) == 0
    made = len(passes)
    picture = to_tensor(fit(read_image(CAT), sd.size, sd.multiple))
    G = minipnp.guidance_from_picture(sd, picture, Stepped(STEPS), how)
    again = minipnp.translate(sd, G, [PROMPT], settings=sd.advised(PnP, steps=STEPS, scale=3))
    to_image(again[0]).save("expected.png")
    assert pixels("o/translation.png") == pixels("expected.png")
    assert made == STEPS + STEPS + (1 if kept else 3)  # 3: the steps that inject


def test_masactrl_reads_words_at_the_latent_s_whole_side(cat):
    sd, x_0, text, target, null = cat
    assert translate("masactrl", "--start-step=0", *MORE) == 0
    G = replace(guidance_from_latent(sd.unet, x_0, null, Stepped(STEPS)), texts=torch.cat([null, text]))
    words = positions(sd.tokenizer, SOURCE, "cat"), positions(sd.tokenizer, PROMPT, "tiger")
    s = MasaCtrl(STEPS, 3.0, start_step=0)
    assert same(sd, masactrl(sd.unet, G, target, null, words, replace(s, mask_share=1.0)))
    assert not same(sd, masactrl(sd.unet, G, target, null, words, replace(s, mask_share=1 / 4)))


def test_the_mask_of_plug_and_play_is_read_at_the_latent_s_whole_side(cat):
    sd, x_0, text, target, null = cat
    assert translate("masked-pnp", "--inversion-at=current", "--fixed-point=0", *MORE) == 0
    G = guidance_from_latent(sd.unet, x_0, null, Stepped(STEPS), Inversion(at="current", iterations=0))
    word = Word(text, positions(sd.tokenizer, SOURCE, "cat"), positions(sd.tokenizer, PROMPT, "tiger"))
    s = sd.advised(PnP, steps=STEPS, scale=3)
    for side, expected in ((1.0, True), (1 / 4, False)):
        made = masked_plug_and_play(sd.unet, G, target, null, word, s=s, m=Mask(threshold=0.3, share=side))
        assert same(sd, made) is expected


def test_prompt_to_prompt_reads_and_replaces_at_the_latent_s_whole_side(cat):
    sd, x_0, text, target, null = cat
    assert translate("p2p", "--blend-threshold=0.7", *MORE) == 0
    G = guidance_from_latent(sd.unet, x_0, text, Stepped(STEPS))
    cats = {"cat": positions(sd.tokenizer, SOURCE, "cat")}, {"tiger": positions(sd.tokenizer, PROMPT, "tiger")}
    for side, self_side, expected in ((1.0, 1.0, True), (1 / 4, 1.0, False), (1.0, 1 / 4, False)):
        blend = LocalBlend(cats, thresholds=(0.7, 0.7), side=side)
        words = WordEdit(word_swap(sd.tokenizer, SOURCE, PROMPT), blend=blend)
        s = P2P(STEPS, self_side=self_side, scale=3)
        # null: an inverted picture comes back only where its own text is the negative prompt too.
        assert same(sd, prompt_to_prompt(sd.unet, G, text, target, text, words, s)) is expected


@pytest.mark.parametrize("method", ["ddim", "sdedit", "pnp", "skip-inject"])
def test_a_generated_original_has_its_scale_and_seed(method):
    """Each changes the original, and so what is made of it."""
    made = set()
    for n, more in enumerate((["--seed=3"], ["--seed=4"], ["--seed=3", "--source-scale=1"])):
        assert translate(method, *dict.fromkeys([SAYS, *more]), "--steps=4", f"--out=o{n}", image=None) == 0
        made.add(pixels(f"o{n}/guidance.png"))
    assert len(made) == 3
