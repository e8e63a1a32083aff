"""The command `features`: PCA of f, q and k, components of self-attention, and where words of a prompt attend."""

import json

import torch
from safetensors.torch import save as to_safetensors

from minipnp.app.log import Log
from minipnp.app.models import open_model
from minipnp.app.results import record, save_results, where
from minipnp.app.seen import Request, T, gather
from minipnp.ddim import timesteps
from minipnp.errors import InputError
from minipnp.files.images import fit
from minipnp.methods.settings import decoder_layers
from minipnp.see import attention, collect, figures
from minipnp.slots import Layer, decoder

FIG_3 = (1, 4, 7, 11)


def features_command(given: dict, argv: list[str]) -> int:
    """PCA of f, q, k over all pictures; components of A; words: a labelled picture each, and the arrays on request."""
    log, job, of = Log(given.get("quiet", False)), Request.of(given), list(dict.fromkeys(given.get("of", ["f"])))
    ts = sorted(set(given.get("t", [T])), reverse=True)
    words_ts = ts if "t" in given or job.noise else timesteps(job.steps)  # Prompt-to-Prompt's mean is over all steps
    if "words" in of and not all(prompt.strip() for prompt in job.prompts):
        raise InputError("--of words needs --prompt: say what the picture shows")
    chosen = {quantity: chosen_layers(quantity, given, len(ts)) for quantity in of}
    series = {q for q in of if q in "fqk" and len(ts) > 1 and (chosen[q] is None or len(chosen[q]) == 1)}
    count = sum(1 if q in series else len(ts) if q in "fqk" else len(job.names) for q in of)
    out = where(given, job.names[0] + "-features", many=count > 1)
    square, smooth = given.get("square", False), given.get("smooth", False)
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        met = sorted({*(ts if of != ["words"] else ()), *(words_ts if "words" in of else ())}, reverse=True)
        pictures = gather(job, sd, log, met, lambda *how: fit(*how, square))
        x_0 = pictures[0].seen.x_0
        usual = {"words": collect.usual_words(x_0)}
        layers = {q: chosen[q] or usual.get(q, (collect.usual_layer(x_0),)) for q in of}
        files, arrays, said = {}, {p.name: {} for p in pictures}, {}
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
        settings = {"pictures": [p.about for p in pictures]} | job.settings | {
            "of": {q: {"layers": list(map(str, layers[q])), "t": words_ts if q == "words" else ts} for q in of},
            "smooth": smooth,
        } | ({"words": said} if said else {}) | model  # fmt: skip
        files = {name: (image, settings) for name, image in files.items()}
        if given.get("raw"):
            text = {"minipnp": json.dumps(settings, ensure_ascii=False)}
            files |= {f"{name}.safetensors": to_safetensors(tensors, text) for name, tensors in arrays.items()}
        print(*save_results(out, files, record(settings, log, argv)), sep="\n")
    return 0


def chosen_layers(quantity: str, given: dict, times: int) -> tuple[Layer, ...] | None:
    """The layers to show a quantity of; None: the usual ones, which depend on the picture's size."""
    if "layers" in given:
        layers = decoder_layers(given["layers"])
        if not layers:
            raise InputError("--layers none: give one at least")
    elif quantity == "words" or (times > 1 and quantity != "A"):
        return None
    else:
        layers = decoder(*FIG_3) if quantity == "f" else decoder(*FIG_3[1:])
    collect.check_layers(quantity, layers)
    return layers
