"""The recipe of the bundled model, a step a file: fetch, render, captions, train_vae, classifier, train_unet, export.

concepts.py says what is learnt, data.py makes batches of it, training.py is the loop. train.py runs all steps in order,
evaluate.py measures what came out.
"""

import sys
from collections.abc import Callable

from minipnp.errors import InputError


def run(main: Callable[[], object]) -> None:
    """A step as a program: a mistake in what it was given is one line."""
    try:
        main()
    except InputError as error:
        print(f"minipnp: {error}", file=sys.stderr)
        sys.exit(2)
