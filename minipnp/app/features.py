"""The command `features`: PCA of f, q and k, components of self-attention, and where words of a prompt attend."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import save as to_safetensors

from minipnp.app.log import Log
from minipnp.app.models import open_model
from minipnp.app.options import TIMES, Parser, add_model_options, add_options, words
from minipnp.app.results import record, save_results, where
from minipnp.app.seen import USUAL_T, Request, add_looking_options, gather
from minipnp.errors import InputError
from minipnp.files.images import fit
from minipnp.methods.maps import layers_at
from minipnp.options import LAYERS, SWITCH, Options, option
from minipnp.see import attention, collect, figures
from minipnp.slots import Layer, decoder

FIG_3 = (1, 4, 7, 11)
QUANTITIES = ("f", "q", "k", "A", "words")


@dataclass(frozen=True)
class Showing(Options):
    """What `features` shows, and how."""

    of: tuple[str, ...] = option(("f",), "any of f, q, k, A, words", words(*QUANTITIES))
    layers: tuple[Layer, ...] | None = option(
        None,
        "decoder layers, such as 4 or 4,7,11 (default: 1,4,7,11, for A, q, k without 1; several t: one, as "
        "segment; words: all cross-attentions of one size)",
        LAYERS,
    )
    t: tuple[int, ...] | None = option(
        None, f"timesteps, such as 981,741,541 {USUAL_T[:-1]}; words: the mean over all steps)", TIMES
    )
    smooth: bool = option(False, "enlarge maps bicubically; else cells are seen as blocks", SWITCH)
    raw: bool = option(False, "also the arrays, a safetensors file for each picture", SWITCH)
    square: bool = option(False, "crop the centre to a square", SWITCH)


def features_options(here: Parser) -> None:
    here.description += (
        "\n\nOne t: layers x pictures (Fig. 3). Several t, one layer: pictures x timesteps (Fig. 4). A: Fig. 6."
    )
    add_looking_options(here, "a picture, or a folder of pictures")
    add_options(here, Showing)
    add_model_options(here)


def features_command(given: dict, argv: list[str]) -> int:
    """PCA of f, q, k over all pictures; components of A; words: a labelled picture each, and the arrays on request."""
    log = Log(given.get("quiet", False))
    job = Request.of(given, log)
    s = Showing.given(given)
    of = list(dict.fromkeys(s.of))
    ts = sorted(set(s.t or [job.how.usual_t]), reverse=True)
    # Prompt-to-Prompt's mean is over all steps.
    words_ts = ts if s.t or job.how.noised else job.how.levels
    if "words" in of and not all(prompt.strip() for prompt in job.prompts):
        raise InputError("--of words needs --prompt: say what the picture shows")
    chosen = {quantity: chosen_layers(quantity, s.layers, len(ts)) for quantity in of}
    series = {q for q in of if q in "fqk" and len(ts) > 1 and (chosen[q] is None or len(chosen[q]) == 1)}
    count = sum(1 if q in series else len(ts) if q in "fqk" else len(job.names) for q in of)
    out = where(given, job.names[0] + "-features", many=count > 1)
    smooth = s.smooth
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        met = sorted({*(ts if of != ["words"] else ()), *(words_ts if "words" in of else ())}, reverse=True)
        pictures = gather(job, sd, log, met, lambda *how: fit(*how, s.square))
        usual = {q: layers_at(sd.advice.share) if q == "words" else decoder(sd.advice.layer) for q in of}
        layers = {q: chosen[q] or usual[q] for q in of}
        files = {}
        arrays = {p.name: {} for p in pictures}
        said = {}
        for q in of:
            with log.clock(q):
                if q == "words":
                    for p in pictures:
                        maps = attention.word_maps(sd, p.seen, p.prompt, layers[q], words_ts, log.progress)
                        files[f"words-{p.name}.png"] = figures.word_figure(p, maps)
                        arrays[p.name]["words"] = torch.stack([x for _, x in maps])
                        said[p.name] = [word for word, _ in maps]
                    continue
                held = {}
                for p, t in ((p, t) for p in pictures for t in ts):
                    for layer, x in collect.features(sd, p.seen, t, q, layers[q]).items():
                        held[layer, t, p.name] = x
                        arrays[p.name][f"{q}.decoder{layer.row}.t{t}"] = x.contiguous()
                if q == "A":
                    files |= {f"A-{p.name}.png": figures.fig_6(p, layers[q], ts, held, smooth) for p in pictures}
                elif q in series:
                    (layer,) = layers[q]
                    files[f"{q}-layer{layer.row}.png"] = figures.fig_4(q, pictures, layer, ts, held, smooth)
                else:
                    files |= {f"{q}-t{t}.png": figures.fig_3(q, pictures, layers[q], t, held, smooth) for t in ts}
        settings = (
            {"pictures": [p.about for p in pictures]}
            | job.settings
            | {
                "of": {q: {"layers": list(map(str, layers[q])), "t": words_ts if q == "words" else ts} for q in of},
                "smooth": smooth,
            }
            | ({"words": said} if said else {})
            | model
        )
        files = {name: (image, settings) for name, image in files.items()}
        if s.raw:
            text = {"minipnp": json.dumps(settings, ensure_ascii=False)}
            files |= {f"{name}.safetensors": to_safetensors(tensors, text) for name, tensors in arrays.items()}
        print(*save_results(out, files, record(settings, log, argv)), sep="\n")
    return 0


def chosen_layers(quantity: str, given: tuple[Layer, ...] | None, times: int) -> tuple[Layer, ...] | None:
    """The layers to show a quantity of; None: those that the model advises."""
    if given is not None:
        layers = given
        if not layers:
            raise InputError("--layers none: give one at least")
    elif quantity == "words" or (times > 1 and quantity != "A"):
        return None
    else:
        layers = decoder(*FIG_3) if quantity == "f" else decoder(*FIG_3[1:])
    collect.check_layers(quantity, layers)
    return layers
