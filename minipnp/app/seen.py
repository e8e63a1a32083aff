"""The pictures that a command looks at: from files and texts, as they were asked for, to their x_t."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image, Resampling

from minipnp.app.log import Log
from minipnp.app.models import advice
from minipnp.app.options import Parser, add, add_options, add_pictures, pictures_of
from minipnp.app.results import picture_of
from minipnp.app.useless import refuse
from minipnp.errors import InputError
from minipnp.files.images import LONGEST, find_images, read_image, to_image, to_tensor
from minipnp.files.names import slug, stem
from minipnp.model import StableDiffusion
from minipnp.options import LAYERS, PLACE, SEED, SWITCH, TEXTS, Stepped, option, whole
from minipnp.see.collect import Seen, check_layers, generated, inverted, levels, noised
from minipnp.see.figures import Picture
from minipnp.slots import Layer

USUAL_T = "(default: 541, or the nearest that the steps meet)"
T = 541  # "roughly 50 % of the sampling process", as in the paper's Fig. 3


@dataclass(frozen=True)
class Looking(Stepped):
    """Where x_t of the pictures comes from, in how many steps of inverting or generating."""

    noised: bool = option(False, "x_t of files by adding noise, as DIFT; else by DDIM inversion, as the paper", SWITCH)
    seed: int = option(0, "seed of the noise; each picture has one more than the last", SEED)
    size: int | None = option(None, "short side in pixels (default: the model's own)", whole(1))

    @property
    def usual_t(self) -> int:
        """T, or the level of the steps that is nearest to it."""
        return T if self.noised else min(self.levels, key=lambda t: abs(t - T))


USELESS_TO_SEE = (
    (("seed",), lambda a: not a.get("noised") and not a.get("source"), "it is that of --noised and of --source"),
    (("steps", "timesteps"), lambda a: a.get("noised"), "--noised goes to x_t in one"),
)
USUAL_LAYER = "(default: the model's advice, for Stable Diffusion the paper's 4)"
SHOWS = "what the files show, once for all or once for each: their text in the network (default: none)"


def add_looking_options(here: Parser, pictures: str, prompt: str = SHOWS) -> None:
    """Which pictures are looked at, and where x_t comes from."""
    add_pictures(here, pictures, many=True)
    add(here, "--source", "a picture generated from this text; repeat", TEXTS)
    add(here, "--prompt", prompt, TEXTS)
    add_options(here, Looking)
    add(here, "--out", "a folder, or NAME.png for one picture (default: out/PICTURE-COMMAND)", PLACE)


def one_layer(given: dict, of: str) -> Layer:
    """The layer that was asked for, or that the model advises."""
    layers = LAYERS.take([given.get("layer", advice(given).layer)])
    check_layers(of, layers)
    return layers[0]


@dataclass(frozen=True)
class Request:
    """paths: files, each with its prompt. sources: texts that pictures are generated from. how: to their x_t."""

    paths: list[Path]
    prompts: list[str]
    sources: list[str]
    how: Looking = Looking()

    @classmethod
    def of(cls, given: dict, log: Log) -> "Request":
        """Of a command's options, checked as far as that goes without the model."""
        pictures_of(given, many=True)
        with log.warnings_as_notes():
            paths = [path for picture in given.get("image", []) for path in find_images(picture)]
        prompts = given.get("prompt", [])
        sources = given.get("source", [])
        how = Looking.given(given)
        if not paths and not sources:
            raise InputError("no picture: give one or several files or folders, or --source to generate one")
        if len(prompts) not in (0, 1, len(paths)):
            raise InputError(f"{len(prompts)} --prompt for {len(paths)} pictures: give one for all, or one for each")
        if prompts and not paths:
            raise InputError(
                "--prompt says what a file shows; a picture that is generated has its --source: leave it out"
            )
        if how.noised and sources:
            raise InputError("--noised is for files, and --source generates a picture: leave one of them out")
        refuse(USELESS_TO_SEE, given, given)
        for path in paths:
            read_image(path)
        prompts = prompts * len(paths) if len(prompts) == 1 else prompts or [""] * len(paths)
        return cls(paths, prompts, sources, how)

    @property
    def names(self) -> list[str]:
        """One for each picture, none twice whatever the case: they will be names of files."""
        names = []
        for wanted in [stem(path) for path in self.paths] + [slug(source) for source in self.sources]:
            taken = {name.casefold() for name in names}
            free = (
                name for i in range(1, 10**6) if (name := wanted if i == 1 else f"{wanted}-{i}").casefold() not in taken
            )
            names.append(next(free))
        return names

    def x_t(self, sd: StableDiffusion, image: Image, prompt: str, ts: Sequence[int], number: int, log: Log) -> Seen:
        """Of a file. number: which of the pictures it is, so that each has a noise of its own."""
        if self.how.noised:
            return noised(sd, to_tensor(image), ts, prompt, (self.how.seed + number) % 2**64)
        return inverted(sd, to_tensor(image), ts, prompt, self.how, log.progress)

    @property
    def settings(self) -> dict:
        """What decides x_t, but for the pictures and the model."""
        if self.how.noised:
            return {"x_t": "noised", "seed": self.how.seed}
        return {
            "x_t": "inverted or generated",
            "steps": self.how.steps,
            "timesteps": self.how.spacing,
            "seed": self.how.seed,
        }


def gather(
    job: Request, sd: StableDiffusion, log: Log, ts: Sequence[int], to_size: Callable[[Image, int, int], Image]
) -> list[Picture]:
    """All pictures with their x_t at `ts`. to_size: from a picture, the short side and the multiple of sides."""
    if not job.how.noised:
        levels(ts, job.how)
    sd.tokenizer(*job.prompts, *job.sources)  # what is cut off is noted now, not after hours
    if job.paths and not job.how.noised:
        log.expect({"inversion": 1 + sum(t <= max(ts) for t in job.how.levels)}, len(job.paths))
    size = job.how.size or sd.size
    found = []
    with log.clock("x_t"):
        for i, (path, prompt) in enumerate(zip(job.paths, job.prompts, strict=True)):
            image = to_size(read_image(path), size, sd.multiple)
            seen = job.x_t(sd, image, prompt, ts, i, log)
            found.append((image, prompt, seen, picture_of(path) | {"prompt": prompt}))
        for i, source in enumerate(job.sources, len(job.paths)):
            seed = (job.how.seed + i) % 2**64
            seen = generated(sd, source, ts, seed, job.how, size=size, progress=log.progress)
            found.append((to_image(sd.decode(seen.x_0)), source, seen, {"source": source, "seed": seed}))
    return [
        Picture(name, image, prompt, seen, about | {"pixels": list(image.size)})
        for name, (image, prompt, seen, about) in zip(job.names, found, strict=True)
    ]


def uncropped(image: Image, size: int, multiple: int) -> Image:
    """To the network's sizes without a crop, so that every place of it is kept: sides to the nearest multiple."""
    if size < 1 or size % multiple:
        raise InputError(f"size {size} must be a positive multiple of {multiple}")
    width, height = (round(side * size / min(image.size) / multiple) * multiple for side in image.size)
    if max(width, height) > LONGEST * size:
        raise InputError(
            f"a picture of {image.width}x{image.height} pixels is too long (over {LONGEST}:1): crop it first"
        )
    return image.resize((width, height), Resampling.LANCZOS)
