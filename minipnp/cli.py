"""The command line: `python -m minipnp translate | sample | compare | weights`. Its options, and how it ends.

commands.py does the work. It needs torch, so it is imported when the options are known to be right.
"""

import argparse
import contextlib
import math
import re
import sys
from functools import partial

from minipnp.errors import InputError

ON_OR_OFF = argparse.BooleanOptionalAction


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} (`{self.prog} --help` lists the options)")


class Default:
    """The value of an option that is not given. The core has it; it is looked up there only when help shows it."""

    def __init__(self, command: str, name: str):
        self.command, self.name = command, name

    def __str__(self) -> str:
        from minipnp.commands import DEFAULTS

        return str(DEFAULTS[self.command][self.name])


def number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def seed(text: str) -> int:
    if not 0 <= (value := int(text)) < 2**64:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to 2^64 - 1")
    return value


def rows(text: str) -> list[int]:
    """4 · 4-8 · 4,6 · none: rows of the decoder."""
    if text == "none":
        return []
    ends = [span.partition("-") for span in text.split(",")]
    spans = [range(int(first), int(last or first) + 1) for first, _, last in ends]
    if not all(0 < len(span) <= 12 for span in spans):
        raise ValueError
    return sorted({row for span in spans for row in span})


def amount_of(text: str) -> tuple[str, float]:
    """blue=2"""
    word, equals, value = text.rpartition("=")
    if not word or not equals:
        raise ValueError
    return word, number(value)


def parser() -> Parser:
    top = Parser(
        prog="minipnp", description="Plug-and-Play Diffusion Features: a picture's layout, a text's appearance."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    translate_options(command(commands, "translate", "make pictures that keep a picture's layout and follow a text"))
    sample_options(command(commands, "sample", "make pictures from text alone"))
    compare_options(command(commands, "compare", "run all methods on one picture: a labelled sheet and a table"))
    weights = command(
        commands, "weights", "fetch Stable Diffusion 1.5 into weights/sd15; size and licence are said first"
    )
    weights.add_argument("--dtype", help="fp16 (2.1 GB, the default) or fp32 (4.3 GB)")
    weights.add_argument("--repo", help="a hub id with the same files, should the usual one disappear")
    return top


def command(commands, name: str, help: str) -> Parser:
    return commands.add_parser(name, help=help, description=f"{name}: {help}.", allow_abbrev=False)


def setting(command: str, group, flag: str, help: str, **how) -> None:
    """An option whose default the core has."""
    how.setdefault("dest", flag.removeprefix("--").replace("-", "_"))
    group.add_argument(flag, help=f"{help} (default: %(default)s)", default=Default(command, how["dest"]), **how)


def translate_options(here: Parser) -> None:
    here.epilog = (
        "Without --image and --source: a bundled example. The same command makes the same bytes. An earlier result is "
        "never overwritten by another one, which goes to the next free name: out/horse-2 after out/horse."
    )
    option = partial(setting, "translate")

    what = here.add_argument_group("guidance and text")
    what.add_argument("--image", help="the guidance: a picture, or a folder of pictures", metavar="PATH")
    what.add_argument("--prompt", help="what to make of it; repeat for several; --prompt=-… for a leading dash",
                      action="append", metavar="TEXT")  # fmt: skip
    what.add_argument("--negative", help="what to keep away from, instead of the empty prompt", metavar="TEXT")
    what.add_argument(
        "--out", help="a folder, or NAME.png for one translation (default: out/IMAGE'S NAME)", metavar="PATH"
    )
    what.add_argument("--source", help="generate the guidance from this text, without --image", metavar="TEXT")
    option(what, "--source-scale", "guidance scale of that", type=number)
    option(what, "--seed", "seed of that", type=seed)
    what.add_argument("--size", help="short side in pixels (default: the model's own)", type=int)
    what.add_argument("--square", help="crop the centre to a square, as the paper does", action=ON_OR_OFF, default=None)

    pnp = here.add_argument_group("Plug-and-Play")
    pnp.add_argument("--like", help="take the defaults of this one of the authors' codebases (default: pnp-diffusers)",
                     choices=("pnp-diffusers", "plug-and-play"))  # fmt: skip
    option(pnp, "--steps", "steps of the translation, 1 to 999", type=int)
    option(pnp, "--tau-f", "share of the steps in which features f are injected", type=number)
    option(pnp, "--tau-a", "share of the steps in which self-attention A is", dest="tau_A", type=number)
    option(pnp, "--f-layers", "decoder layers of f, such as 4-8 or 4,6 or none", type=rows, metavar="LAYERS")
    option(pnp, "--a-layers", "decoder layers of A", dest="A_layers", type=rows, metavar="LAYERS")
    option(pnp, "--scale", "guidance scale w of Eq. (5)", type=number)
    option(pnp, "--alpha", "weight of the empty against the negative prompt, Eq. (6)", type=number)
    option(pnp, "--alpha-schedule", "its course", metavar="{constant,linear,exp}")
    pnp.add_argument("--random-start", help="ablation: start from noise of this seed, not from the guidance's",
                     type=seed, metavar="SEED")  # fmt: skip

    inversion = here.add_argument_group("inversion of --image")
    inversion_options(inversion)
    option(inversion, "--resample", "sample the guidance again in N steps, 0: do not", type=int, metavar="N")
    inversion.add_argument(
        "--reconstruct", help="show and measure what the inversion lost", action="store_true", default=None
    )
    method_options(here)
    model_options(here)


def inversion_options(group) -> None:
    option = partial(setting, "translate", group)
    option("--inversion-steps", "1 to 999", type=int)
    option("--inversion-at", "the level that eps is taken at", metavar="{next,current}")
    option("--fixed-point", "iterations of the implicit equation", type=int, metavar="N")


METHODS = ("pnp", "sdedit", "ddim", "p2p", "pix2pix-zero", "masactrl", "masked-pnp")
METHOD_OPTIONS = (  # flag, name in editing.py, methods, help, how it is read
    ("--word", "word", "masactrl, masked-pnp", "the object: horse, or horse=cow for the source's and the prompt's", {}),
    ("--mask", "mask", "masked-pnp", "the object, white, in a picture", {"metavar": "PATH"}),
    ("--threshold", "threshold", "masactrl, masked-pnp", "of the mask, a share of the maps' range", {"type": number}),
    ("--strength", "strength", "sdedit", "share of the steps that run", {"type": number}),
    ("--cross-replace", "cross_replace", "p2p", "share of the steps with the source's cross maps", {"type": number}),
    ("--self-replace", "self_replace", "p2p", "share of the steps with its self-attention maps", {"type": number}),
    ("--self-side", "self_side", "p2p", "and where the side of its cells is at most this share of the latent's",
     {"type": number}),
    ("--align", "align", "p2p", "the prompts' words, one to one or as far as they agree",
     {"choices": ("auto", "swap", "phrase")}),
    ("--weight", "weight", "p2p", "re-weight a word of the prompt; repeat", {"type": amount_of, "metavar": "WORD=X"}),
    ("--share", "share", "p2p", "cross-replace of one word; repeat", {"type": amount_of, "metavar": "WORD=X"}),
    ("--blend", "blend", "p2p", "change the picture only at this word; repeat", {"metavar": "WORD[=WORD]"}),
    ("--spare", "spare", "p2p", "and not at this word; repeat", {"metavar": "WORD[=WORD]"}),
    ("--blend-threshold", "blend_threshold", "p2p", "of that mask, a share of the maps' maximum", {"type": number}),
    ("--blend-start", "blend_start", "p2p", "share of the steps that are not blended", {"type": number}),
    ("--as-published", "as_published", "p2p, pix2pix-zero", "as the authors' code has it where this one differs",
     {"action": "store_true", "default": None}),
    ("--change", "change", "pix2pix-zero", "the direction, such as cat=dog, or two .txt files of sentences",
     {"metavar": "A=B"}),
    ("--direction", "direction_file", "pix2pix-zero", "a direction that was saved", {"metavar": "PATH"}),
    ("--save-direction", "save_direction_to", "pix2pix-zero", "save the direction", {"metavar": "PATH"}),
    ("--amount", "amount", "pix2pix-zero", "of cross-attention guidance (0.1; generated 0.15)", {"type": number}),
    ("--lambda-ac", "lambda_ac", "pix2pix-zero", "regularisation by autocorrelation", {"type": number}),
    ("--lambda-kl", "lambda_kl", "pix2pix-zero", "regularisation by KL divergence", {"type": number}),
    ("--gain", "gain", "pix2pix-zero", "of each level of its pyramid; the paper has 2, its code 1", {"type": number}),
    ("--start-step", "start_step", "masactrl", "from which step on", {"type": int}),
    ("--start-layer", "start_layer", "masactrl", "from which of the 16 self-attentions on", {"type": int}),
)  # fmt: skip
REPEATED = ("--weight", "--share", "--blend", "--spare")


def method_options(here: Parser) -> None:
    other = here.add_argument_group(
        "other methods", "--source says what the picture shows. Options that a method does not have are refused."
    )
    other.add_argument("--method", choices=METHODS, help="default: pnp")
    for flag, name, methods, help, how in METHOD_OPTIONS:
        how = how if how.keys() & {"choices", "action"} else {"metavar": "X"} | how
        how |= {"action": "append"} if flag in REPEATED else {}
        other.add_argument(flag, dest=name, help=f"{methods}: {help}", **how)


def compare_options(here: Parser) -> None:
    here.epilog = "Without --image: the bundled example."
    here.add_argument("--image", help="the picture to edit", metavar="PATH")
    here.add_argument("--prompt", help="what to make of it", metavar="TEXT")
    here.add_argument("--source", help="what it shows now", metavar="TEXT")
    here.add_argument("--negative", help="what to keep away from, instead of the empty prompt", metavar="TEXT")
    here.add_argument("--word", help="the object: horse, or horse=cow for the source's and the prompt's")
    here.add_argument("--blend-threshold", help="of Prompt-to-Prompt's local blend", type=number, metavar="X")
    here.add_argument("--out", help="a folder, or NAME.png (default: out/IMAGE'S NAME-compare)", metavar="PATH")
    here.add_argument("--seed", help="of SDEdit's noise", type=seed)
    here.add_argument("--size", help="short side in pixels (default: the model's own)", type=int)
    here.add_argument("--square", help="crop the centre to a square", action=ON_OR_OFF, default=None)
    inversion_options(here)
    model_options(here)


def sample_options(here: Parser) -> None:
    option = partial(setting, "sample", here)
    here.add_argument(
        "--prompt", help="repeat for several; --prompt=-… for a leading dash", action="append", metavar="TEXT"
    )
    here.add_argument("--negative", help="what to keep away from, instead of the empty prompt", metavar="TEXT")
    here.add_argument("--out", help="a folder, or NAME.png for one picture (default: out/PROMPT)", metavar="PATH")
    option("--seed", "seed of the noise", type=seed)
    option("--steps", "1 to 999", type=int)
    option("--scale", "guidance scale", type=number)
    here.add_argument("--width", help="in pixels (default: the model's own)", type=int)
    here.add_argument("--height", help="in pixels (default: the model's own)", type=int)
    model_options(here)


def model_options(here: Parser) -> None:
    model = here.add_argument_group("model")
    model.add_argument("--model", help="bundled, sd15, a file, a folder, a hub id (default: sd15 if there, or bundled)")
    model.add_argument("--vae", help="take the VAE from this file or folder", metavar="PATH")
    model.add_argument("--prediction-type", help="of the UNet, where its files do not say", choices=("epsilon", "v"))
    model.add_argument("--ema", help="take the averaged weights of a single file", action=ON_OR_OFF, default=None)
    model.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    model.add_argument("--dtype", help="float32, float16 or bfloat16 (default: float16 on CUDA, else float32)")
    here.add_argument("--quiet", help="no progress, only notes and errors", action="store_true", default=None)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0; 2 for bad input, which one line explains; 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    with contextlib.suppress(AttributeError):  # a notebook's stdout
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold anything
    try:
        options = vars(parser().parse_args(argv))
        name = options.pop("command")
        given = {key: value for key, value in options.items() if not (value is None or isinstance(value, Default))}

        return run(name, given, argv)
    except KeyboardInterrupt:
        said, code = "interrupted", 130
    except Exception as error:
        if (reason := explain(error)) is None:
            raise
        said, code = f"error: {reason}", 2
    print(f"minipnp: {said}", file=sys.stderr)
    return code


def run(name: str, given: dict, argv: list[str]) -> int:
    method = given.pop("method", "pnp")
    for repeated in given.keys() & {"weight", "share"}:
        given[repeated] = dict(given[repeated])
    if method != "pnp" or name == "compare":
        from minipnp import edit_commands

        return (
            edit_commands.compare(given, argv) if name == "compare" else edit_commands.translate_by(method, given, argv)
        )
    for flag, option, methods, *_ in METHOD_OPTIONS:
        if option in given:
            raise InputError(f"{flag} is an option of {methods}: give --method, or leave it out")
    from minipnp import commands

    return getattr(commands, name)(given, argv)


def explain(error: Exception) -> str | None:
    """One line for bad input and for lack of memory; None for what is a defect of this program."""
    if isinstance(error, InputError):
        return " ".join(str(error).splitlines())
    lack = "out of memory|not enough memory|can't allocate memory"  # CUDA, MPS; Windows; Linux
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(lack, str(error))):
        return "not enough memory: try a smaller --size, --dtype float16 or bfloat16, or another --device"
    return None
