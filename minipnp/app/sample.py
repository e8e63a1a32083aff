"""The command `sample`: pictures from text alone."""

from minipnp.app.log import Log
from minipnp.app.models import advice, open_model, say_advice
from minipnp.app.options import Parser, add, add_model_options, add_options
from minipnp.app.results import record, save_results, where
from minipnp.ddim import check_start
from minipnp.errors import InputError
from minipnp.files.images import to_image
from minipnp.files.names import slug
from minipnp.options import PLACE, TEXT, TEXTS
from minipnp.pipeline import Sampling, draw


def sample_options(here: Parser) -> None:
    add(here, "--prompt", "what to draw; repeat for several; --prompt=-… for a leading dash", TEXTS)
    add(here, "--negative", "what to keep away from, instead of the empty prompt", TEXT)
    add(here, "--out", "a folder, or NAME.png for one picture (default: out/PROMPT)", PLACE)
    add_options(here, Sampling)
    add_model_options(here)


def sample_command(given: dict, argv: list[str]) -> int:
    log = Log(given.get("quiet", False))
    prompts = given.get("prompt")
    negative = given.get("negative")
    if not prompts:
        raise InputError("no --prompt: say what to make")
    out = where(given, slug(prompts[0]), many=len(prompts) > 1)
    advised = advice(given)
    s = Sampling.given({**advised.options, **given})
    with log.warnings_as_notes():
        check_start(s.levels)
        sd, model = open_model(given, log)
        say_advice(advised, given, log, Sampling)
        sd.tokenizer(*prompts, negative or "")
        log.expect({"sampling": s.steps * (1 if s.scale in (0, 1) else 2)}, len(prompts))
        files = {}
        for i, prompt in enumerate(prompts, 1):
            with log.clock(f"sampling {i}"):
                picture = to_image(draw(sd, prompt, s, negative, log.progress))
            settings = s.record() | {"negative": negative, "pixels": list(picture.size)} | model
            files[f"picture-{i}.png" if len(prompts) > 1 else "picture.png"] = picture, {"prompts": [prompt]} | settings
        print(*save_results(out, files, record({"prompts": prompts} | settings, log, argv)), sep="\n")
    return 0
