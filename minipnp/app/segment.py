"""The command `segment`: parts of pictures by clusters of features and of self-attention."""

from minipnp.app.log import Log
from minipnp.app.models import open_model
from minipnp.app.results import record, save_results, where
from minipnp.app.seen import Request, T, gather, one_layer
from minipnp.errors import InputError
from minipnp.files.images import fit
from minipnp.see import cluster, collect, figures, show
from minipnp.see.sheet import sheet


# ---------------------------------------------------------------------------------------------------------------------
def segment_command(given: dict, argv: list[str]) -> int:
    """Parts by clusters of features, of all pictures together, and by clusters of self-attention, of each by itself."""
    log, job, k, t = Log(given.get("quiet", False)), Request.of(given), given.get("parts", 4), given.get("t", T)
    out = where(given, job.names[0] + "-segment", many=False)
    square, seed, of = given.get("square", False), given.get("cluster_seed", 0), given.get("of", "f")
    layer = one_layer(given, "A")
    if k < 1:
        raise InputError(f"--parts {k}: give 1 or more")
    with log.warnings_as_notes():
        sd, model = open_model(given, log)
        pictures = gather(job, sd, log, [t], lambda *how: fit(*how, square))
        layer = layer or collect.usual_layer(pictures[0].seen.x_0)
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
        settings = {"pictures": [p.about for p in pictures]} | job.settings | {
            "parts": k, "of": of, "layer": str(layer), "t": t, "cluster_seed": seed,
        } | model  # fmt: skip
        print(*save_results(out, {"segment.png": (sheet(*rows), settings)}, record(settings, log, argv)), sep="\n")
    return 0
