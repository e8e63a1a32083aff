"""The command `segment`: parts of pictures by clusters of features and of self-attention."""

from dataclasses import dataclass

from minipnp.app.log import Log
from minipnp.app.models import open_model
from minipnp.app.options import Parser, add_model_options, add_options
from minipnp.app.results import record, save_results, where
from minipnp.app.seen import USUAL_LAYER, USUAL_T, Request, add_looking_options, gather, one_layer
from minipnp.files.images import fit
from minipnp.options import SEED, STEPS, SWITCH, Options, choice, option, whole
from minipnp.see import cluster, collect, figures, show
from minipnp.see.sheet import sheet


@dataclass(frozen=True)
class Parting(Options):
    """How pictures are cut into parts."""

    parts: int = option(4, "how many parts", whole(1))
    of: str = option("f", "what to cluster, beside self-attention", choice("f", "q", "k"))
    layer: int | None = option(None, f"decoder layer, 3 to 11 {USUAL_LAYER}", whole(0, 11))
    t: int | None = option(None, f"timestep {USUAL_T}", STEPS)
    cluster_seed: int = option(0, "seed of k-means", SEED)
    square: bool = option(False, "crop the centre to a square", SWITCH)


def segment_options(here: Parser) -> None:
    add_looking_options(here, "a picture, or a folder of pictures: parts that are alike share a colour")
    add_options(here, Parting)
    add_model_options(here)


def segment_command(given: dict, argv: list[str]) -> int:
    """Parts by clusters of features, of all pictures together, and by clusters of self-attention, of each by itself."""
    log = Log(given.get("quiet", False))
    job = Request.of(given, log)
    s = Parting.given(given)
    k = s.parts
    t = s.t or job.how.usual_t
    of = s.of
    seed = s.cluster_seed
    out = where(given, job.names[0] + "-segment", many=False)
    layer = one_layer(given, "A")
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        pictures = gather(job, sd, log, [t], lambda *how: fit(*how, s.square))
        f, A = ([collect.features(sd, p.seen, t, what, [layer])[layer] for p in pictures] for what in (of, "A"))
        with log.clock("clusters"):
            by_f = cluster.parts_by_features(f, k, [p.image.size[::-1] for p in pictures], seed)
            by_A = [
                cluster.parts_by_attention(x, *collect.cells_of(layer, p.seen), k, seed)
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
        settings = (
            {"pictures": [p.about for p in pictures]}
            | job.settings
            | {
                "parts": k,
                "of": of,
                "layer": str(layer),
                "t": t,
                "cluster_seed": seed,
            }
            | model
        )
        print(*save_results(out, {"segment.png": (sheet(*rows), settings)}, record(settings, log, argv)), sep="\n")
    return 0
