"""The command `translate`: pictures that keep the layout of a guidance and follow a text, by Plug-and-Play."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image

import minipnp
from minipnp.app.log import Log
from minipnp.app.models import open_model, suited
from minipnp.app.options import rows
from minipnp.app.results import picture_of, record, save_results, where
from minipnp.ddim import timesteps
from minipnp.errors import InputError, explain
from minipnp.files import hub
from minipnp.files.guidance_file import check_guidance, open_guidance
from minipnp.files.images import find_images, fit, psnr, read_image, to_image, to_tensor
from minipnp.files.names import slug, stem
from minipnp.guidance import Guidance
from minipnp.methods.settings import Settings
from minipnp.model import StableDiffusion
from minipnp.pipeline import check_noise, check_sides, guidance_from_picture, guidance_from_prompt, reconstruct
from minipnp.pnp import PnP
from minipnp.see.sheet import Cell, scaled, sheet

EXAMPLE_PICTURE = "bundled/examples/house-fluent-emoji-high-contrast.png"  # under weights/


EXAMPLE_PROMPT = "a glossy icon of a house on a teal background"


CHECKS = 5  # of the inversion's residual, where --reconstruct asks what it lost


SETTLED = (  # when a picture is inverted
    "like steps size square seed inversion_steps inversion_at fixed_point resample vae_sampled".split()
)


KEPT = ("steps", "tau_f", "tau_A", "f_layers", "A_layers", "inclusive")  # what features in a file are those of


@dataclass(frozen=True)
class Translation:
    """What `translate` is to do, checked as far as that goes without the model.

    paths: the pictures to translate, those of a `folder` or one; none where the guidance is generated from `source`, or
    in a file.
    """

    s: Settings
    like: str
    paths: list[Path]
    folder: bool
    prompts: list[str]
    source: str | None
    negative: str | None
    reconstruct: bool
    out: Path
    guidance: Path | None = None  # a file of `invert`, in the place of a picture
    made: dict | None = None  # what made it

    @property
    def settings(self) -> dict:
        """What decides the translations, but for the guidance and the model."""
        return {"prompts": self.prompts, "negative": self.negative, "like": self.like} | self.s.options()

    @property
    def due(self) -> dict[str, int]:
        due = self.s.evaluations(
            self.source is not None and not self.paths, len(self.prompts), self.negative is not None, self.reconstruct,
            **({} if self.made is None else {"kept": kept_of(self.made)}),
        )  # fmt: skip
        return due if self.guidance is None else {k: n for k, n in due.items() if k not in ("inversion", "resampling")}


def translate_command(given: dict, argv: list[str]) -> int:
    log = Log(given.get("quiet", False))
    with log.warnings_as_notes():
        job = plan(given, log)
        sd, model = open_model(given, log)
        if job.guidance is not None:
            check_guidance(job.guidance, job.made, model)
        check_sides(sd, job.s.size or sd.size, job.s.size or sd.size)
        sd.tokenizer(*job.prompts, job.source or "", job.negative or "")  # what is cut is noted now, not after hours
        log.expect(job.due, max(1, len(job.paths)))
        if job.folder:
            return translate_folder(job, sd, model, log, argv)
        translate_one(job, sd, model, job.paths[0] if job.paths else None, job.out, log, argv)
        return 0


def plan(given: dict, log: Log) -> Translation:
    image, source, prompts = given.get("image"), given.get("source"), given.get("prompt")
    if given.get("guidance") is not None:
        return plan_from_file(Path(given["guidance"]), given)
    if image is None and source is None:
        given.setdefault("model", "bundled")
        hub.resolve("bundled")
        image, prompts = str(hub.WEIGHTS / EXAMPLE_PICTURE), prompts or [EXAMPLE_PROMPT]
        log.say(f"no --image: the bundled example, {image}")
    if not prompts:
        raise InputError("no --prompt: say what to make of the guidance")
    if image == "":
        raise InputError("--image is empty: give a picture or a folder of pictures")
    generated, like = image is None, given.get("like", "minipnp")
    advised = suited(given, like)
    advised |= {"source_scale": advised["scale"]} if generated and advised else {}
    s = Settings.like(like, generated).with_options(advised | given)
    if given.get("reconstruct"):
        s = replace(s, inversion=replace(s.inversion, checks=CHECKS))
    negative = given.get("negative", source if s.source_is_negative else None)
    refuse_unused(given, generated, s, negative)
    if generated or s.random_start is not None:
        check_noise(s.pnp.steps)
    if "seed" in given and not generated and not s.vae_sampled:
        log.note("--seed changes nothing here: nothing is drawn at random where a picture is inverted")

    paths = [] if generated else find_images(image)
    folder = not generated and Path(image).is_dir()
    out = where(given, slug(source) if generated else stem(Path(image)), many=folder or len(prompts) > 1)
    if not generated:
        if not folder:
            read_image(image)
        if s.inversion.schedule(s.pnp.steps)[1] and not s.inversion.resample:
            log.note("the edit has levels that the inversion has not: the guidance is sampled again from its noise")
    return Translation(s, like, paths, folder, prompts, source, negative, given.get("reconstruct", False), out)


def plan_from_file(path: Path, given: dict) -> Translation:
    """A translation that starts from a file of `invert`: what the file has settled cannot be given again."""
    if not given.get("prompt"):
        raise InputError("no --prompt: say what to make of the guidance")
    settled = {*SETTLED, "image", "source", "source_scale"} - {"like", "steps"}
    if twice := sorted(given.keys() & settled):
        flags = ", ".join("--" + name.replace("_", "-") for name in twice)
        raise InputError(f"{flags}: settled by --guidance {path}; leave it out, or leave out --guidance")
    G, made = open_guidance(path, torch.device("cpu"))
    like = given.get("like", made["like"])
    s = Settings.like(like, generated=False).with_options(suited(given, like) | made["options"] | given)
    steps = made["options"]["steps"]
    if not G.latents.keys() >= set(timesteps(s.pnp.steps)) or (G.resampled and s.pnp.steps != steps):
        raise InputError(f"{path}: made for an edit in {steps} steps: give --steps {steps}, or `minipnp invert` again")
    negative = given.get("negative")
    refuse_alpha(given, s, negative)
    if s.random_start is not None:
        check_noise(s.pnp.steps)
    out = where(given, stem(path), many=len(given["prompt"]) > 1)
    return Translation(
        s, like, [], False, given["prompt"], None, negative, given.get("reconstruct", False), out, path, made
    )


def kept_of(made: dict) -> PnP | None:
    """The edit whose features a guidance's file holds."""
    if not made["kept"]:
        return None
    layers = {name: rows(made["kept"][name]) for name in ("f_layers", "A_layers")}
    return Settings().with_options(made["kept"] | layers).pnp


def refuse_unused(given: dict, generated: bool, s: Settings, negative: str | None) -> None:
    """Raises InputError for an option that would change nothing."""
    of_a_picture = ("inversion_steps", "inversion_at", "fixed_point", "resample", "reconstruct", "square")
    for name in of_a_picture if generated else ("source_scale",):
        if name in given:
            why = "the guidance is generated here, not an --image" if generated else "the guidance is an --image here"
            raise InputError(f"--{name.replace('_', '-')} changes nothing, {why}: leave it out")
    if not generated and "source" in given and not (s.source_is_negative and "negative" not in given):
        raise InputError(
            "--source changes nothing, the guidance is an --image here: leave it out, or for a guidance that is "
            "generated from it leave out --image"
        )
    refuse_alpha(given, s, negative)
    if generated and s.random_start == s.seed:
        raise InputError(f"--random-start {s.seed} is the guidance's own start (--seed): give another number")


def refuse_alpha(given: dict, s: Settings, negative: str | None) -> None:
    """As `refuse_unused`, of the options that weigh the empty prompt against the negative one."""
    if negative is None and given.keys() & {"alpha", "alpha_schedule"}:
        raise InputError("--alpha weighs the empty prompt against a negative one: give --negative too")
    if "alpha_schedule" in given and s.pnp.alpha == 0:
        raise InputError("--alpha-schedule is the course of --alpha, which is 0 here: give --alpha too")


def translate_one(
    job: Translation, sd: StableDiffusion, model: dict, path: Path | None, out: Path, log: Log, argv: list[str]
) -> list[Cell]:
    """Makes and saves all of one guidance → the guidance and the translations, for the summary of a folder."""
    s, found = job.s, {}
    if job.guidance is not None:
        G, made = open_guidance(job.guidance, sd.device)[0], job.made["guidance"]
        if not G.resampled:  # the edit may have fewer steps than the file, and begins at a level of its own
            levels = timesteps(s.pnp.steps)
            G = replace(G, latents={t: G.latents[t] for t in levels}, x_T=G.latents[levels[0]])
        row = [("guidance", to_image(sd.decode(G.x_0)))]
        round_trip = row[0][1]
    elif path is None:
        made = {"source": job.source}
        with log.clock("guidance"):
            size = s.size or sd.size
            G = guidance_from_prompt(
                sd, job.source, s.seed, s.pnp.steps, s.source_scale, s.both, size, size, log.progress
            )
            row = [("guidance: " + job.source, to_image(sd.decode(G.x_0)))]
    else:
        G, picture, made = guidance_of(path, sd, s, log, s.keeps)
        round_trip = to_image(sd.decode(G.x_0))
        row = [("guidance", picture), ("VAE round trip", round_trip)]
        found["residuals"] = G.residuals
    if job.reconstruct:
        with log.clock("reconstruction"):
            again = to_image(reconstruct(sd, G, log.progress))
        found["psnr"] = {label: psnr(again, other) for label, other in row}
        row.append((f"reconstruction: {psnr(again, round_trip):.1f} dB against the round trip", again))
    with log.clock("translation"):
        pictures = minipnp.translate(sd, G, job.prompts, job.negative, s.pnp, s.random_start, log.progress)
        translations = [(prompt, to_image(x)) for prompt, x in zip(job.prompts, pictures, strict=True)]

    settings = made | job.settings | {"pixels": list(row[0][1].size)} | model
    files = {}
    for i, (prompt, picture) in enumerate(translations, 1):
        name = f"translation-{i}.png" if len(translations) > 1 else "translation.png"
        files[name] = picture, settings | {"prompts": [prompt]}  # as if it had been made alone
    files["side-by-side.png"] = sheet(row + translations), settings
    if path is None and job.guidance is None:
        files["guidance.png"] = row[0][1], settings
    print(*save_results(out, files, record(settings, log, argv, **found)), sep="\n")
    return [row[0], *translations]


def guidance_of(path: Path, sd: StableDiffusion, s: Settings, log: Log, keep: bool) -> tuple[Guidance, Image, dict]:
    """The guidance of a picture; the picture as it was taken; and what the records say of it."""
    picture = fit(read_image(path), s.size or sd.size, sd.multiple, s.square)
    vae_seed = s.seed if s.vae_sampled else None
    with log.clock("inversion"):
        G = guidance_from_picture(
            sd, to_tensor(picture), s.pnp.steps, s.inversion, vae_seed, log.progress, s.pnp if keep else None
        )
    return G, picture, picture_of(path)


def translate_folder(job: Translation, sd: StableDiffusion, model: dict, log: Log, argv: list[str]) -> int:
    """Every picture of a folder; one that fails is reported and skipped. At the end a summary page."""
    summary, rows, failed = [], [], 0
    stems = [stem(path).casefold() for path in job.paths]
    for i, path in enumerate(job.paths, 1):
        log.say(f"[{i}/{len(job.paths)}] {path.name}")
        name = stem(path) if stems.count(stem(path).casefold()) == 1 else path.name.replace(".", "-")
        try:
            (_, picture), *translations = translate_one(job, sd, model, path, job.out / name, log, argv)
            rows.append([(label, scaled(image, reduce=True)) for label, image in [(path.name, picture), *translations]])
            summary.append({"picture": path.name})
        except Exception as error:
            if (reason := explain(error)) is None:
                raise
            log.failed(reason)
            summary.append({"picture": path.name, "error": reason})
            failed += 1
    if rows:
        settings = {"pictures": summary} | job.settings | model
        files = {"summary.png": (sheet(*rows), settings)}
        print(*save_results(job.out / "summary.png", files, record(settings, log, argv)), sep="\n")
    if failed:
        raise InputError(f"{failed} of {len(job.paths)} pictures could not be translated")
    return 0
