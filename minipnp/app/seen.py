"""The pictures that a command looks at: from files and texts, as they were asked for, to their x_t."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image, Resampling

from minipnp.app.log import Log
from minipnp.app.results import picture_of
from minipnp.ddim import timesteps
from minipnp.errors import InputError
from minipnp.files.images import LONGEST, find_images, read_image, to_image, to_tensor
from minipnp.files.names import slug, stem
from minipnp.methods.settings import decoder_layers
from minipnp.model import StableDiffusion
from minipnp.see import collect
from minipnp.see.collect import Seen, generated, inverted, levels, noised
from minipnp.see.figures import Picture
from minipnp.slots import Layer

T = 541  # "roughly 50 % of the sampling process", as in the paper's Fig. 3


def one_layer(given: dict, of: str) -> Layer | None:
    """The layer that was asked for; None: the usual one, which depends on the picture's size."""
    if "layer" not in given:
        return None
    layers = decoder_layers([given["layer"]])
    collect.check_layers(of, layers)
    return layers[0]


@dataclass(frozen=True)
class Request:
    """Where x_t comes from.

    paths: files, each with its prompt. sources: texts that pictures are generated from. noise: of files, by Eq. (1) and
    not by inversion. steps: of inverting and of generating. seed: of the noise. size: short side in pixels; None: the
    model's own.
    """

    paths: list[Path]
    prompts: list[str]
    sources: list[str]
    noise: bool = False
    steps: int = 50
    seed: int = 0
    size: int | None = None

    @classmethod
    def of(cls, given: dict) -> "Request":
        """Of a command's options, checked as far as that goes without the model."""
        paths = [path for picture in given.get("pictures", []) for path in find_images(picture)]
        prompts, sources, noise = given.get("prompt", []), given.get("source", []), given.get("noised", False)
        if not paths and not sources:
            raise InputError("no picture: give one or several files or folders, or --source to generate one")
        if len(prompts) not in (0, 1, len(paths)):
            raise InputError(f"{len(prompts)} --prompt for {len(paths)} pictures: give one for all, or one for each")
        if prompts and not paths:
            raise InputError(
                "--prompt says what a file shows; a picture that is generated has its --source: leave it out"
            )
        if noise and sources:
            raise InputError("--noised is for files, and --source generates a picture: leave one of them out")
        refuse_unused_to_see(given)
        for path in paths:
            read_image(path)
        options = {name: given[name] for name in ("steps", "seed", "size") if name in given}
        timesteps(options.get("steps", cls.steps))
        prompts = prompts * len(paths) if len(prompts) == 1 else prompts or [""] * len(paths)
        return cls(paths, prompts, sources, noise, **options)

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
        if self.noise:
            return noised(sd, to_tensor(image), ts, prompt, (self.seed + number) % 2**64)
        return inverted(sd, to_tensor(image), ts, prompt, self.steps, log.progress)

    @property
    def settings(self) -> dict:
        """What decides x_t, but for the pictures and the model."""
        how = {"x_t": "noised"} if self.noise else {"x_t": "inverted or generated", "steps": self.steps}
        return how | {"seed": self.seed}


def refuse_unused_to_see(given: dict) -> None:
    """Raises InputError for an option that would change nothing."""
    if "seed" in given and not given.get("noised") and not given.get("source"):
        raise InputError("--seed changes nothing here, it is that of --noised and of --source: leave it out")
    if "steps" in given and given.get("noised"):
        raise InputError("--steps changes nothing here, --noised goes to x_t in one: leave it out")


def gather(
    job: Request, sd: StableDiffusion, log: Log, ts: Sequence[int], to_size: Callable[[Image, int, int], Image]
) -> list[Picture]:
    """All pictures with their x_t at `ts`. to_size: from a picture, the short side and the multiple of sides."""
    if not job.noise:
        levels(ts, job.steps)
    sd.tokenizer(*job.prompts, *job.sources)  # what is cut off is noted now, not after hours
    if job.paths and not job.noise:
        log.expect({"inversion": 1 + sum(t <= max(ts) for t in timesteps(job.steps))}, len(job.paths))
    size, found = job.size or sd.size, []
    with log.clock("x_t"):
        for i, (path, prompt) in enumerate(zip(job.paths, job.prompts, strict=True)):
            image = to_size(read_image(path), size, sd.multiple)
            seen = job.x_t(sd, image, prompt, ts, i, log)
            found.append((image, prompt, seen, picture_of(path) | {"prompt": prompt}))
        for i, source in enumerate(job.sources, len(job.paths)):
            seed = (job.seed + i) % 2**64
            seen = generated(sd, source, ts, seed, job.steps, size=size, progress=log.progress)
            found.append((to_image(sd.decode(seen.x_0)), source, seen, {"source": source, "seed": seed}))
    return [
        Picture(name, image, prompt, seen, about | {"pixels": list(image.size)})
        for name, (image, prompt, seen, about) in zip(job.names, found, strict=True)
    ]


def whole(image: Image, size: int, multiple: int) -> Image:
    """To the network's sizes without a crop, so that every place of it is kept: sides to the nearest multiple."""
    if size < 1 or size % multiple:
        raise InputError(f"size {size} must be a positive multiple of {multiple}")
    width, height = (round(side * size / min(image.size) / multiple) * multiple for side in image.size)
    if max(width, height) > LONGEST * size:
        raise InputError(
            f"a picture of {image.width}x{image.height} pixels is too long (over {LONGEST}:1): crop it first"
        )
    return image.resize((width, height), Resampling.LANCZOS)
