"""The command `sample`: pictures from text alone."""

from minipnp.app.log import Log
from minipnp.app.models import open_model, suited
from minipnp.app.results import record, save_results, where
from minipnp.errors import InputError
from minipnp.files.images import to_image
from minipnp.files.names import slug
from minipnp.methods.settings import DEFAULTS
from minipnp.pipeline import check_noise, draw


def sample_command(given: dict, argv: list[str]) -> int:
    log, prompts = Log(given.get("quiet", False)), given.get("prompt")
    if not prompts:
        raise InputError("no --prompt: say what to make")
    out = where(given, slug(prompts[0]), many=len(prompts) > 1)
    chosen = suited(given) | given
    how = {name: chosen.get(name, default) for name, default in DEFAULTS["sample"].items()}
    check_noise(how["steps"])
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        sd.tokenizer(*prompts, how["negative"] or "")
        log.expect({"sampling": how["steps"] * (1 if how["scale"] in (0, 1) else 2)}, len(prompts))
        files = {}
        for i, prompt in enumerate(prompts, 1):
            with log.clock(f"sampling {i}"):
                picture = to_image(draw(sd, prompt, **how, progress=log.progress))
            settings = how | {"pixels": list(picture.size)} | model
            files[f"picture-{i}.png" if len(prompts) > 1 else "picture.png"] = picture, {"prompts": [prompt]} | settings
        print(*save_results(out, files, record({"prompts": prompts} | settings, log, argv)), sep="\n")
    return 0
