"""Experiments with Plug-and-Play's settings, on the bundled model.

    python -m tools.experiments NAME [options]
    python -m tools.experiments NAME --help

Each prints a table that the documentation has; its own help says what it measures.
"""

import argparse
import sys

from tools.experiments import differences, inversion_curve, kept_features, layers, thresholds, word_maps

EXPERIMENTS = {  # each has `options(parser)`, which adds its options, and `run(args)`
    "layers": layers,
    "thresholds": thresholds,
    "word-maps": word_maps,
    "differences": differences,
    "kept-features": kept_features,
    "inversion-curve": inversion_curve,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(metavar="NAME", required=True)
    for name, experiment in EXPERIMENTS.items():
        own = names.add_parser(
            name,
            help=experiment.__doc__.splitlines()[0],
            description=experiment.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        experiment.options(own)
        own.set_defaults(run=experiment.run)
    args = parser.parse_args(argv)
    return args.run(args) or 0


if __name__ == "__main__":
    sys.exit(main())
