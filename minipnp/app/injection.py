"""The command `injection`: what injecting f and A does, as in the paper's Fig. 5."""

from minipnp.app.log import Log
from minipnp.app.models import open_model, suited
from minipnp.app.results import record, save_results, where
from minipnp.errors import InputError
from minipnp.files.images import find_images, fit, read_image, to_image, to_tensor
from minipnp.files.names import stem
from minipnp.methods.settings import Settings
from minipnp.pipeline import check_noise, guidance_from_picture
from minipnp.see.injection import FIG_5, every, injections
from minipnp.see.sheet import sheet


# ---------------------------------------------------------------------------------------------------------------------
def injection_command(given: dict, argv: list[str]) -> int:
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
        sd, model = open_model(given, log)
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
        print(*save_results(out, {"injection.png": (page, settings)}, record(settings, log, argv)), sep="\n")
    return 0
