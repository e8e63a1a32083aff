"""The command `translate`: pictures that keep the layout of an original and follow a text, by any of the methods."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image

from minipnp.app.log import Log
from minipnp.app.models import advice, open_model, say_advice
from minipnp.app.options import (
    TAKING,
    Parser,
    add,
    add_inversion_options,
    add_method_options,
    add_model_options,
    add_pictures,
    add_shared_option,
    add_taking_options,
    by_method,
    pictures_of,
)
from minipnp.app.presets import PRESETS, SOURCE_IS_NEGATIVE, preset
from minipnp.app.repeat import repeat
from minipnp.app.results import done_already, picture_of, record, save_results, where
from minipnp.app.useless import Asked, refuse_useless
from minipnp.ddim import check_start
from minipnp.errors import InputError, explain, is_full
from minipnp.files import hub
from minipnp.files.checksums import sha256
from minipnp.files.guidance_file import check_guidance, kept_of, open_guidance
from minipnp.files.images import find_images, fit, psnr, read_image, to_image, to_tensor
from minipnp.files.names import slug, stem
from minipnp.guidance import Inversion, residuals
from minipnp.methods.method import Method
from minipnp.methods.original import Original, Taking
from minipnp.methods.plug_and_play import evaluations
from minipnp.methods.registry import METHODS, check_source, edit
from minipnp.model import StableDiffusion
from minipnp.options import PLACE, SWITCH, TEXT, TEXTS, Options, choice
from minipnp.pipeline import check_sides, reconstruct
from minipnp.pnp import PnP
from minipnp.see.sheet import Cell, scaled, sheet

EXAMPLE_PICTURE = "bundled/examples/house-fluent-emoji-high-contrast.png"  # under weights/
EXAMPLE_SOURCE = "a high contrast icon of a house on a white background"
EXAMPLE_PROMPT = "a glossy icon of a house on a teal background"
CHECKS = 5  # steps whose residual is measured where --reconstruct asks what the inversion lost
EXAMPLES = """examples:
  minipnp translate horse.png --prompt 'a flat icon of a cow on a blue background'
  minipnp translate photos/ --prompt 'a watercolour' --prompt 'an oil painting' --tau-a 0.3
  minipnp translate cat.png --method p2p --source 'a photo of a cat' --prompt 'a photo of a tiger'

Without a picture and --source: a bundled example. On one machine the same command makes the same bytes. An earlier
result is never overwritten by another one, which goes to the next free name: out/horse-2 after out/horse. A run over a
folder that was broken off goes on where it was."""


def translate_options(here: Parser) -> None:
    here.description += "\n\n" + EXAMPLES
    options = by_method()
    usual = here.add_argument_group("what people use")
    add_pictures(usual, "the original: a picture, or a folder of pictures")
    add(usual, "--prompt", "what to make of it; repeat for several; --prompt=-… for a leading dash", TEXTS)
    add(usual, "--negative", "what to keep away from, instead of the empty prompt", TEXT)
    add(usual, "--source", "what the original shows; without a picture, the text it is generated from", TEXT)
    add(usual, "--method", "how to edit (default: pnp); the groups below say what each is", choice(*METHODS))
    add_shared_option(usual, options["steps"], also=False)
    add_shared_option(usual, options["scale"], also=False)
    add_shared_option(usual, options["tau_f"])
    add_shared_option(usual, options["tau_A"])
    add(usual, "--out", "a folder, or NAME.png for one translation (default: out/PICTURE'S NAME)", PLACE)
    more = here.add_argument_group("the original")
    add(more, "--guidance", "a file that `minipnp invert` made of a picture, in the place of one", PLACE)
    add_taking_options(more, *TAKING)
    add(more, "--reconstruct", "show and measure what the inversion lost", SWITCH)
    add_inversion_options(here)
    add_method_options(here, but=("steps", "scale", "tau_f", "tau_A"))
    again = here.add_argument_group("other defaults, and an earlier run")
    add(again, "--like", "take the defaults of this codebase; the last two are the authors' own", choice(*PRESETS))
    add(again, "--repeat", "make the run of this run.json again, and say what differs", PLACE)
    add_model_options(here)


@dataclass(frozen=True)
class Translation:
    """What `translate` is to do, checked as far as that goes without the model.

    origin: of what is edited: "picture", "text" (it is generated from `source`) or "file" (a guidance of `invert`).
    paths: the pictures, those of a `folder` or one. guidance: the file; made: what made it.
    """

    method: Method
    s: Options
    taking: Taking
    inversion: Inversion
    like: str
    origin: str
    paths: list[Path]
    folder: bool
    prompts: list[str]
    source: str
    negative: str | None
    reconstruct: bool
    out: Path
    guidance: Path | None = None
    made: dict | None = None

    @property
    def settings(self) -> dict:
        """What decides the translations, but for the original and the model."""
        about = {"method": self.method.name, "prompts": self.prompts, "negative": self.negative, "like": self.like}
        about |= {"reconstruct": self.reconstruct}
        about |= self.s.record() | self.taking.record() | self.inversion.record_for(self.s)
        # What a file holds decides, and not its name.
        return about | {name: [sha256(Path(file)) for file in files] for name, files in self.s.files().items()}

    @property
    def labels(self) -> list[str]:
        """What is written over the translations: their prompts, or the direction that stands in the place of one."""
        return self.prompts if self.method.reads_prompt(self.s) else [self.s.change or self.s.direction_file]

    @property
    def keep(self) -> PnP | None:
        """The edit whose features are worth keeping while a picture is inverted."""
        return self.s if isinstance(self.s, PnP) else None

    @property
    def due(self) -> dict[str, int] | None:
        """How often the network will be evaluated, by phase; None: that is counted for Plug-and-Play only."""
        if type(self.s) is not PnP:
            return None
        if self.origin == "file":
            kept = kept_of(self.made)
        else:
            keeps = self.origin == "picture" and self.inversion.keeps_features(self.s)
            kept = self.s if keeps else None
        inversion = None if self.origin == "text" else self.inversion
        scale = self.taking.source_scale or 0
        due = evaluations(
            self.s, inversion, len(self.prompts), self.negative is not None, self.reconstruct, kept, scale
        )
        made_before = ("inversion", "resampling") if self.origin == "file" else ()
        return {phase: n for phase, n in due.items() if phase not in made_before}


def translate_command(given: dict, argv: list[str]) -> int:
    if "repeat" in given:
        return repeat(given, read_options, run_translation)
    run_translation(given, argv)
    return 0


def read_options(argv: list[str]) -> dict:
    """The options of a command line, by name."""
    parser = Parser(prog="minipnp translate", description="")
    translate_options(parser)
    return parser.given(argv)


def run_translation(given: dict, argv: list[str]) -> list[Path]:
    """→ the files that were made, run.json last."""
    log = Log(given.get("quiet", False))
    with log.warnings_as_notes():
        job = plan(given, log)
        sd, model = open_model(given, log)
        if job.like == "minipnp":
            say_advice(sd.advice, given, log, type(job.s))
        if job.guidance is not None:
            check_guidance(job.guidance, job.made, model)
        size = job.taking.size or sd.size
        check_sides(sd, size, size)
        sd.tokenizer(*job.prompts, job.source, job.negative or "")  # what is cut is noted now, not after hours
        if job.due is not None:
            log.expect(job.due, max(1, len(job.paths)))
        if job.folder:
            return translate_folder(job, sd, model, log, argv)
        _, files = translate_one(job, sd, model, job.paths[0] if job.paths else None, job.out, log, argv)
        print(*files, sep="\n")
        return files


def plan(given: dict, log: Log) -> Translation:
    """Reads and checks the options. InputError: they do not go together, or lack something."""
    pictures_of(given)
    method = METHODS[given.get("method", "pnp")]
    if given.get("image") == "":
        raise InputError("--image is empty: give a picture or a folder of pictures")
    if not given.keys() & {"image", "source", "guidance"}:
        use_the_example(given, method, log)
    origin = "file" if "guidance" in given else "picture" if "image" in given else "text"
    like = given.get("like", "minipnp")
    made = None
    file = None
    if origin == "file":
        file = Path(given["guidance"])
        G, made = open_guidance(file, torch.device("cpu"))
        if method.name == "pnp":  # a codebase has its own defaults of Plug-and-Play only
            like = given.get("like", made["like"])
    advised = advice(given, like)
    values = {**preset(like, origin == "text"), **advised.options, **(made["options"] if made else {}), **given}
    s = method.settings.given(values)
    if origin == "text" and "source_scale" not in given:
        values["source_scale"] = advised.options.get("scale", method.source_scale) if method.source_scale else s.scale
    taking = Taking.given(values)
    inversion = Inversion.given(values)
    source = given.get("source", "")
    negative = given.get("negative")
    asked = given
    if like in SOURCE_IS_NEGATIVE and "negative" not in given and "source" in given:
        negative = source
        asked = {name: value for name, value in given.items() if name != "source" or origin == "text"}
    refuse_useless(Asked(asked, method, s, origin, negative))
    if not given.get("prompt") and method.reads_prompt(s):
        raise InputError("no --prompt: say what to make of the original")
    prompts = given.get("prompt", [""])
    check_source(method, s, source)
    if len(prompts) > 1 and "save_direction_to" in given:
        raise InputError("--save-direction keeps one direction, and each prompt has its own: give one prompt")
    if origin == "text" or getattr(s, "random_start", None) is not None:
        check_start(s.levels)
    if origin == "text" and getattr(s, "random_start", None) == taking.seed:
        raise InputError(f"--random-start {taking.seed} is the guidance's own start (--seed): give another number")
    if "seed" in given and origin == "picture" and not (taking.vae_sampled or method.draws):
        log.note("--seed changes nothing here: nothing is drawn at random where a picture is inverted")

    paths = find_images(given["image"]) if origin == "picture" else []
    folder = origin == "picture" and Path(given["image"]).is_dir()
    name = slug(source) if origin == "text" else stem(file or Path(given["image"]))
    if method.name != "pnp":
        name += f"-{method.name}"
    out = where(given, name, many=folder or len(prompts) > 1)
    if origin == "file" and method.guidance is not None:
        try:
            G.for_edit(s)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    if origin == "picture":
        if not folder:
            read_image(paths[0])
        if method.guidance is not None and inversion.schedule(s)[1] and not inversion.resample:
            log.note("the edit has levels that the inversion has not: the guidance is sampled again from its noise")
    return Translation(
        method=method,
        s=s,
        taking=taking,
        inversion=inversion,
        like=like,
        origin=origin,
        paths=paths,
        folder=folder,
        prompts=prompts,
        source=source,
        negative=negative,
        reconstruct=given.get("reconstruct", False),
        out=out,
        guidance=file,
        made=made,
    )


def use_the_example(given: dict, method: Method, log: Log) -> None:
    given.setdefault("model", "bundled")
    hub.resolve("bundled")
    given["image"] = str(hub.WEIGHTS / EXAMPLE_PICTURE)
    s = method.settings.given(given)
    if method.reads_prompt(s):
        given.setdefault("prompt", [EXAMPLE_PROMPT])
    if method.needs_source(s):
        given["source"] = EXAMPLE_SOURCE
    log.say(f"no --image: the bundled example, {given['image']}")


def open_original(job: Translation, sd: StableDiffusion, path: Path | None, log: Log) -> tuple[Original, Image, dict]:
    """What is edited; its picture as it was taken; and what the records say of it."""
    if job.origin == "text":
        with log.clock("guidance"):
            o = Original.from_text(sd, job.source, job.taking, log.progress)
            check_words(job, o)
            return o, to_image(o.picture(job.s)), {"source": job.source}
    if job.origin == "file":
        G, made = open_guidance(job.guidance, sd.device)
        o = Original.from_guidance(sd, G, job.source, job.taking, job.inversion, log.progress)
        check_words(job, o)
        about = made["guidance"] | {"guidance_sha256": sha256(job.guidance)}
        return o, to_image(o.picture(job.s)), about | source_of(job)
    with log.clock("inversion"):
        picture = taken(path, sd, job.taking)
        o = Original.from_picture(sd, to_tensor(picture), job.source, job.taking, job.inversion, job.keep, log.progress)
        check_words(job, o)
        if job.method.guidance is not None:
            job.method.guidance(o, job.s)
    return o, picture, picture_of(path) | source_of(job)


def check_words(job: Translation, o: Original) -> None:
    """Raises InputError, before the long work, for words and files that do not fit."""
    for prompt in job.prompts:
        job.method.check(o, prompt, job.s)


def source_of(job: Translation) -> dict[str, str]:
    return {"source": job.source} if job.source else {}


def taken(path: Path, sd: StableDiffusion, taking: Taking) -> Image:
    """The picture in a file, brought to the network's sizes."""
    return fit(read_image(path), taking.size or sd.size, sd.multiple, taking.square)


def translate_one(
    job: Translation, sd: StableDiffusion, model: dict, path: Path | None, out: Path, log: Log, argv: list[str]
) -> tuple[list[Cell], list[Path]]:
    """Makes and saves all of one original → it and the translations, for the summary of a folder; and the files."""
    o, picture, made = open_original(job, sd, path, log)
    found = {}
    if job.origin == "text":
        row = [("guidance: " + job.source, picture)]
    else:
        row = [("guidance", picture)]
    round_trip = picture
    if job.origin == "picture":
        round_trip = to_image(o.picture(job.s))
        row.append(("VAE round trip", round_trip))
    if job.reconstruct:
        with log.clock("reconstruction"):
            G = job.method.guidance(o, job.s)
            again = to_image(reconstruct(sd, G, log.progress))
            found["residuals"] = residuals(sd.unet, G, CHECKS)
        found["psnr"] = {label: psnr(again, other) for label, other in row}
        row.append((f"reconstruction: {psnr(again, round_trip):.1f} dB against the round trip", again))
    with log.clock("translation"):
        pictures = edit(o, job.prompts, job.s, job.negative, log.progress)
        translations = [(label, to_image(x)) for label, x in zip(job.labels, pictures, strict=True)]

    settings = made | job.settings | {"pixels": list(picture.size)} | model
    files = {}
    for name, prompt, (_, translation) in zip(names_of(job), job.prompts, translations, strict=True):
        files[name] = translation, settings | {"prompts": [prompt]}  # as if it had been made alone
    files["side-by-side.png"] = sheet(row + translations), settings
    if job.origin == "text":
        files["guidance.png"] = picture, settings
    return [row[0], *translations], save_results(out, files, record(settings, log, argv, **found))


def names_of(job: Translation) -> list[str]:
    """The file names of the translations, one for each prompt."""
    if len(job.prompts) == 1:
        return ["translation.png"]
    return [f"translation-{i}.png" for i in range(1, len(job.prompts) + 1)]


def translate_folder(job: Translation, sd: StableDiffusion, model: dict, log: Log, argv: list[str]) -> list[Path]:
    """Every picture of a folder: what is there from an earlier run is not made again, what fails is skipped.

    At the end a summary page. InputError: a picture failed. NoRoom, at once: the disk is full.
    """
    summary = []
    rows = []
    failed = 0
    files = []
    stems = [stem(path).casefold() for path in job.paths]
    for i, path in enumerate(job.paths, 1):
        name = stem(path) if stems.count(stem(path).casefold()) == 1 else path.name.replace(".", "-")
        try:
            cells = translated_before(job, sd, model, path, job.out / name)
            if cells is not None:
                log.say(f"[{i}/{len(job.paths)}] {path.name}: there already")
            else:
                log.say(f"[{i}/{len(job.paths)}] {path.name}")
                cells, made = translate_one(job, sd, model, path, job.out / name, log, argv)
                print(*made, sep="\n")
            (_, picture), *translations = cells
            rows.append([(label, scaled(image, reduce=True)) for label, image in [(path.name, picture), *translations]])
            summary.append({"picture": path.name})
        except Exception as error:
            if is_full(error) or (reason := explain(error)) is None:  # the next ones would not be saved either
                raise
            log.failed(reason)
            summary.append({"picture": path.name, "error": reason})
            failed += 1
    if rows:
        settings = {"pictures": summary} | job.settings | model
        page = {"summary.png": (sheet(*rows), settings)}
        files = save_results(job.out / "summary.png", page, record(settings, log, argv))
        print(*files, sep="\n")
    if failed:
        raise InputError(f"{failed} of {len(job.paths)} pictures could not be translated")
    return files


def translated_before(job: Translation, sd: StableDiffusion, model: dict, path: Path, out: Path) -> list[Cell] | None:
    """The picture and its translations, where a run with the same settings has left them; None: it has not."""
    picture = taken(path, sd, job.taking)
    settings = picture_of(path) | source_of(job) | job.settings | {"pixels": list(picture.size)} | model
    made = done_already(out, settings, names_of(job))
    if made is None:
        return None
    return [("guidance", picture), *zip(job.labels, made, strict=True)]
