"""The commands that show what the network holds of pictures: `features`, `correspond`, `segment`, `injection`."""

import json
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from minipnp.commands import load, sheet, slug, stem, suited, where
from minipnp.ddim import timesteps
from minipnp.edit_commands import as_table
from minipnp.errors import InputError
from minipnp.images import find_images, fit, read_image, to_image, to_tensor
from minipnp.pipeline import check_noise, check_sides, guidance_from_picture
from minipnp.run import Log, Settings, decoder_layers, record, save
from minipnp.see import attention, cluster, collect, figures, match, show, spair
from minipnp.see.injection import FIG_5, every, injections
from minipnp.see.pictures import Job, gather, refuse_unused, whole
from minipnp.slots import Layer, decoder

T = 541  # "roughly 50 % of the sampling process", as in the paper's Fig. 3
FIG_3 = (1, 4, 7, 11)


def features(given: dict, argv: list[str]) -> int:
    """PCA of f, q, k over all pictures; components of A; words: a labelled picture each, and the arrays on request."""
    log, job, of = Log(given.get("quiet", False)), Job.of(given), list(dict.fromkeys(given.get("of", ["f"])))
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
        sd, model = load(given, log)
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
                        maps = attention.words(sd, p.seen, p.prompt, layers[q], words_ts, log.progress)
                        files[f"words-{p.name}.png"] = figures.words(p, maps)
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
        print(*save(out, files, record(settings, log, argv)), sep="\n")
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


# ---------------------------------------------------------------------------------------------------------------------


def correspond(given: dict, argv: list[str]) -> int:
    """Where places of A are in B: points and lines, and all of B in the colours of A's places."""
    if "pck" in given:
        return pck(given, argv)
    for option in ("alpha", "split", "limit"):
        if option in given:
            raise InputError(f"--{option} is an option of --pck: leave it out")
    log, job, points = Log(given.get("quiet", False)), Job.of(given), given.get("points")
    if len(job.names) != 2:
        raise InputError(f"{len(job.names)} pictures: give two, A and B")
    if points:
        if not job.paths:
            raise InputError("--points are in pixels of a file, and A is generated here: leave them out")
        width, height = read_image(job.paths[0]).size
        for x, y in points:
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
                raise InputError(f"point {x:g},{y:g}: A has pixels 0,0 to {width - 1},{height - 1}")
    out = where(given, "-".join(job.names) + "-correspond", many=False)
    t, of = given.get("t", T), given.get("of", "f")
    layer = one_layer(given, of)
    with log.warnings_as_notes():
        sd, model = load(given, log)
        A, B = gather(job, sd, log, [t], whole)
        layer = layer or collect.usual_layer(A.seen.x_0)
        f_a, f_b = (collect.features(sd, p.seen, t, of, [layer])[layer] for p in (A, B))
        places = spair.places(torch.tensor(points), width, height) if points else match.centres(3, 3)
        found, cosines = match.nearest(f_a, f_b, places, B.image.height, B.image.width)
        cells_a, cells_b = (tuple(p.seen.x_0.shape[2:]) for p in (A, B))
        origin, _ = match.nearest(f_b, f_a, match.centres(*cells_b), *cells_a)
        named = figures.named(layer, B.seen)
        page = sheet(
            [(f"the most alike {of} of {named}, t = {t}", show.matches(A.image, B.image, places, found))],
            [("each place of B in the colour of the place of A that is most like it", show.matches(
                show.coded(A.image, match.centres(*cells_a), *cells_a), show.coded(B.image, origin, *cells_b)
            ))],
        )  # fmt: skip
        settings = {"pictures": [A.about, B.about]} | job.settings | {
            "points": points, "of": of, "layer": str(layer), "t": t,
        } | model  # fmt: skip
        matches = [
            {"A": a, "B": b, "cosine": c}
            for a, b, c in zip(places.tolist(), found.tolist(), cosines.tolist(), strict=True)
        ]
        run = record(settings, log, argv, matches=matches)
        print(*save(out, {"correspond.png": (page, settings)}, run), sep="\n")
    return 0


def pck(given: dict, argv: list[str]) -> int:
    """The share of correct key points over a folder of annotated pairs."""
    for option in ("pictures", "points", "source"):
        if given.get(option):
            raise InputError(f"--pck has its pictures and points from the folder: leave {option} out")
    if len(prompts := given.get("prompt", [""])) > 1:
        raise InputError("--pck takes one --prompt, in which {category} is the pair's")
    refuse_unused(given)
    log, folder, alpha = Log(given.get("quiet", False)), Path(given["pck"]), given.get("alpha", spair.ALPHA)
    if not alpha > 0:
        raise InputError(f"--alpha {alpha:g}: give a number above 0")
    split, t, of = given.get("split", "test"), given.get("t", T), given.get("of", "f")
    files = spair.pair_files(folder, split, given.get("limit"))
    job = Job([], [], [], given.get("noised", False), **{n: given[n] for n in ("steps", "seed", "size") if n in given})
    wanted = one_layer(given, of)
    collect.check_range([t]) if job.noise else collect.levels([t], job.steps)
    out = where(given, slug(folder.name) + "-pck", many=False)
    with log.warnings_as_notes():
        sd, model = load(given, log)
        check_sides(sd, job.size or sd.size, job.size or sd.size)

        def look(path: Path, category: str, number: int) -> spair.Looked:
            original = read_image(path)
            image = whole(original, job.size or sd.size, sd.multiple)
            seen = job.x_t(sd, image, prompts[0].replace("{category}", category), [t], number, log)
            layer = wanted or collect.usual_layer(seen.x_0)
            return spair.Looked(image, original.size, collect.features(sd, seen, t, of, [layer])[layer])

        with log.clock("pairs"):
            scores, skipped, shown = spair.evaluate(files, folder, look, alpha, log)
        rows = spair.table(scores.values())
        for line in as_table(tuple(rows[0]), [tuple(map(spair.shown, row.values())) for row in rows]).splitlines():
            log.say(line)
        settings = {"folder": folder.name, "split": split, "pairs": len(files), "alpha": alpha} | job.settings | {
            "prompt": prompts[0], "of": of, "layer": str(wanted or "usual"), "t": t, "size": job.size or sd.size,
        } | model  # fmt: skip
        correct = {name: "".join("01"[ok] for ok in score.correct) for name, score in scores.items()}
        run = record(settings, log, argv, pck=rows, skipped=skipped, correct=correct)
        print(*save(out, {"pck.png": (sheet(*shown), settings)}, run), sep="\n")
    if skipped:
        raise InputError(f"{len(skipped)} of {len(files)} pairs could not be used; PCK is that of the others")
    return 0


def one_layer(given: dict, of: str) -> Layer | None:
    """The layer that was asked for; None: the usual one, which depends on the picture's size."""
    if "layer" not in given:
        return None
    layers = decoder_layers([given["layer"]])
    collect.check_layers(of, layers)
    return layers[0]


# ---------------------------------------------------------------------------------------------------------------------


def segment(given: dict, argv: list[str]) -> int:
    """Parts by clusters of features, of all pictures together, and by clusters of self-attention, of each by itself."""
    log, job, k, t = Log(given.get("quiet", False)), Job.of(given), given.get("parts", 4), given.get("t", T)
    out = where(given, job.names[0] + "-segment", many=False)
    square, seed, of = given.get("square", False), given.get("cluster_seed", 0), given.get("of", "f")
    layer = one_layer(given, "A")
    if k < 1:
        raise InputError(f"--parts {k}: give 1 or more")
    with log.warnings_as_notes():
        sd, model = load(given, log)
        pictures = gather(job, sd, log, [t], lambda *how: fit(*how, square))
        layer = layer or collect.usual_layer(pictures[0].seen.x_0)
        f, A = ([collect.features(sd, p.seen, t, what, [layer])[layer] for p in pictures] for what in (of, "A"))
        with log.clock("clusters"):
            by_f = cluster.parts_by_features(f, k, [p.image.size[::-1] for p in pictures], seed)
            by_A = [
                cluster.parts_by_attention(x, *collect.cells(layer, p.seen), k, seed)
                for x, p in zip(A, pictures, strict=True)
            ]
        rows = [
            [
                (p.name, p.image),
                (f"{of} of {figures.named(layer, p.seen)}, t = {t}", show.parts(of_f, p.image, k)),
                (f"A of {figures.named(layer, p.seen)}, by itself", show.parts(of_A, p.image, k)),
            ]
            for p, of_f, of_A in zip(pictures, by_f, by_A, strict=True)
        ]
        settings = {"pictures": [p.about for p in pictures]} | job.settings | {
            "parts": k, "of": of, "layer": str(layer), "t": t, "cluster_seed": seed,
        } | model  # fmt: skip
        print(*save(out, {"segment.png": (sheet(*rows), settings)}, record(settings, log, argv)), sep="\n")
    return 0


# ---------------------------------------------------------------------------------------------------------------------


def injection(given: dict, argv: list[str]) -> int:
    """Fig. 5: one translation with f, with A, with both, with neither, and from a random x_T."""
    log, names = Log(given.get("quiet", False)), given.get("pictures", [])
    if len(names) != 1 or len(find_images(names[0])) != 1:
        raise InputError("give one picture, the guidance")
    if not (prompts := given.get("prompt")) or len(prompts) != 1:
        raise InputError("give one --prompt: say what to make of the guidance")
    path, negative, seed = find_images(names[0])[0], given.get("negative"), given.get("seed", 1)
    own = ("steps", "tau_f", "tau_A", "scale", "size", "square", "inversion_steps", "inversion_at", "fixed_point")
    s = Settings().with_options(suited(given) | {name: given[name] for name in own if name in given})
    check_noise(s.pnp.steps)
    guidance = read_image(path)
    out = where(given, stem(path) + "-injection", many=False)
    with log.warnings_as_notes():
        sd, model = load(given, log)
        sd.tokenizer(prompts[0], negative or "")
        picture = fit(guidance, s.size or sd.size, sd.multiple, s.square)
        with log.clock("inversion"):
            G = guidance_from_picture(
                sd, to_tensor(picture), s.pnp.steps, s.inversion, None, log.progress, every(s.pnp) if s.keeps else None
            )
        against = None if negative is None else sd.embed(negative)
        noise = sd.noise(*G.x_T.shape[2:], seed)
        with log.clock("translations"):
            steps = injections(sd.unet, G, sd.embed(prompts[0]), sd.embed(""), against, s.pnp, noise)
            *_, (_, x_0) = log.progress(steps, s.pnp.steps, "translations")
        cells = [("guidance", picture)]
        cells += [(v.label, to_image(x)) for v, x in zip(FIG_5, sd.decode(x_0), strict=True)]
        options = s.options()
        settings = {"picture": path.name, "prompts": prompts, "negative": negative, "random_x_T": seed} | {
            name: options[name] for name in (*own, "resample", "alpha", "alpha_schedule", "inclusive")
        } | {"variants": [v.label for v in FIG_5]} | model  # fmt: skip
        page = sheet(cells[:4], cells[4:])
        print(*save(out, {"injection.png": (page, settings)}, record(settings, log, argv)), sep="\n")
    return 0
