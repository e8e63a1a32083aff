"""The options of each command. Nothing here needs torch, so that help and wrong options are answered at once."""

import argparse
import math
from functools import partial

from minipnp import __version__
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
        from minipnp.methods.settings import DEFAULTS

        return str(DEFAULTS[self.command][self.name])


class MethodDefault(Default):
    """That of an option which only some of the methods have."""

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        from minipnp.methods.editing import METHODS

        values = {method: m.options[self.name] for method, m in METHODS.items() if self.name in m.options}
        said = [f"{value:g} with {method}" for method, value in values.items()]
        return said[0].split(" ")[0] if len(set(values.values())) == 1 else ", ".join(said)


def number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def seed(text: str) -> int:
    if not 0 <= (value := int(text)) < 2**64:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to 2^64 - 1")
    return value


def count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
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


def numbers(text: str) -> list[int]:
    """981,541,141"""
    return [int(part) for part in text.split(",")]


def point(text: str) -> tuple[float, float]:
    """120,64"""
    x, y = map(number, text.split(","))
    return x, y


def parser() -> Parser:
    top = Parser(
        prog="minipnp", description="Plug-and-Play Diffusion Features: a picture's layout, a text's appearance."
    )
    top.add_argument("--version", action="version", version=__version__, help="print the version")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    translate_options(command(commands, "translate", "make pictures that keep a picture's layout and follow a text"))
    sample_options(command(commands, "sample", "make pictures from text alone"))
    invert_options(command(commands, "invert", "keep a picture's guidance in a file, for any number of translations"))
    compare_options(command(commands, "compare", "run all methods on one picture: a labelled sheet and a table"))
    evaluate_options(command(commands, "evaluate", "run methods on a benchmark, measure them: a table and a plot"))
    features_options(command(commands, "features", "show features, self-attention and words of pictures"))
    correspond_options(command(commands, "correspond", "find places of one picture in another; PCK of annotated pairs"))
    segment_options(command(commands, "segment", "show parts of pictures"))
    injection_options(command(commands, "injection", "show what injecting f and A does, as the paper's Fig. 5"))
    words = command(commands, "words", "list what prompts for a small model may say")
    words.add_argument("--model", help="bundled, or a folder (default: as for translate)")
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
    what.add_argument("--guidance", help="or a file that `minipnp invert` made of one", metavar="PATH")
    what.add_argument("--prompt", help="what to make of it; repeat for several; --prompt=-… for a leading dash",
                      action="append", metavar="TEXT")  # fmt: skip
    what.add_argument("--negative", help="what to keep away from, instead of the empty prompt", metavar="TEXT")
    what.add_argument(
        "--out", help="a folder, or NAME.png for one translation (default: out/IMAGE'S NAME)", metavar="PATH"
    )
    what.add_argument("--source", help="generate the guidance from this text, without --image", metavar="TEXT")
    option(what, "--source-scale", "guidance scale of that; bundled model: 3; other methods: --scale's", type=number)
    option(what, "--seed", "seed of that", type=seed)
    what.add_argument("--size", help="short side in pixels (default: the model's own)", type=count)
    what.add_argument("--square", help="crop the centre to a square, as the paper does", action=ON_OR_OFF, default=None)

    pnp = here.add_argument_group("Plug-and-Play")
    like_option(pnp)
    kept_options(pnp)
    option(pnp, "--scale", "w of Eq. (5); ddim and pix2pix-zero 5, the bundled model 3", type=number)
    option(pnp, "--alpha", "weight of the empty against the negative prompt, Eq. (6)", type=number)
    option(pnp, "--alpha-schedule", "its course", metavar="{constant,linear,exp}")
    pnp.add_argument("--random-start", help="ablation: start from noise of this seed, not from the guidance's",
                     type=seed, metavar="SEED")  # fmt: skip

    inversion = here.add_argument_group("inversion of --image")
    inversion_options(inversion)
    option(inversion, "--resample", "sample the guidance again in N steps; 0: if it must be", type=int, metavar="N")
    inversion.add_argument(
        "--reconstruct", help="show and measure what the inversion lost", action="store_true", default=None
    )
    method_options(here)
    model_options(here)


def invert_options(here: Parser) -> None:
    option = partial(setting, "translate")
    here.add_argument("--image", help="the picture", metavar="PATH")
    here.add_argument("--out", help="a name in .safetensors (default: out/IMAGE'S NAME.safetensors)", metavar="PATH")
    here.add_argument("--features", help="keep features too: larger, and the edit needs no passes for them",
                      action="store_true", default=None)  # fmt: skip
    here.add_argument("--size", help="short side in pixels (default: the model's own)", type=count)
    here.add_argument("--square", help="crop the centre to a square", action=ON_OR_OFF, default=None)
    option(here, "--seed", "of the VAE's sample, with --like plug-and-play", type=seed)
    like_option(here)
    edit = here.add_argument_group("the translation to come: what is kept for it")
    kept_options(edit)
    inversion = here.add_argument_group("inversion")
    inversion_options(inversion)
    option(inversion, "--resample", "sample the guidance again in N steps; 0: if it must be", type=int, metavar="N")
    model_options(here)


def like_option(group) -> None:
    group.add_argument("--like", help="take the defaults of this codebase; the last two are the authors' own "
                       "(default: minipnp)", choices=("minipnp", "pnp-diffusers", "plug-and-play"))  # fmt: skip


def kept_options(group) -> None:
    option = partial(setting, "translate", group)
    option("--steps", "steps of the translation, 1 to 999", type=int)
    option("--tau-f", "share of the steps in which features f are injected", type=number)
    option("--tau-a", "share of the steps in which self-attention A is", dest="tau_A", type=number)
    option("--f-layers", "decoder layers of f, such as 4-8 or 4,6 or none", type=rows, metavar="LAYERS")
    option("--a-layers", "decoder layers of A", dest="A_layers", type=rows, metavar="LAYERS")


def inversion_options(group) -> None:
    option = partial(setting, "translate", group)
    group.add_argument("--inversion-steps", help="1 to 999 (default: those of the edit)", type=int, metavar="N")
    option("--inversion-at", "where a step takes eps first: next or current level, or the last step's",
           metavar="{next,current,last}")  # fmt: skip
    option("--fixed-point", "iterations of the implicit equation", type=int, metavar="N")


METHOD_NAMES = ("pnp", "sdedit", "ddim", "p2p", "pix2pix-zero", "masactrl", "masked-pnp")


METHOD_OPTIONS = (  # flag, name in editing.py, methods, help, how it is read
    ("--word", "word", "masactrl, masked-pnp", "the object: horse, or horse=cow for the source's and the prompt's", {}),
    ("--mask", "mask", "masked-pnp", "the object, white, in a picture of the same shape", {"metavar": "PATH"}),
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


WITH_DEFAULTS = (
    "threshold strength cross_replace self_replace blend_threshold blend_start lambda_ac lambda_kl gain start_step "
    "start_layer"
).split()


def method_options(here: Parser) -> None:
    other = here.add_argument_group(
        "other methods", "--source says what the picture shows. Options that a method does not have are refused."
    )
    other.add_argument("--method", choices=METHOD_NAMES, help="default: pnp")
    for flag, name, methods, help, how in METHOD_OPTIONS:
        how = how if how.keys() & {"choices", "action"} else {"metavar": "X"} | how
        how |= {"action": "append"} if flag in REPEATED else {}
        if name in WITH_DEFAULTS:
            how |= {"default": MethodDefault(name)}
            help += " (default: %(default)s)"
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
    here.add_argument("--size", help="short side in pixels (default: the model's own)", type=count)
    here.add_argument("--square", help="crop the centre to a square", action=ON_OR_OFF, default=None)
    inversion_options(here)
    model_options(here)


def evaluate_options(here: Parser) -> None:
    here.epilog = (
        "Broken off, the same command goes on where it was. Under `torchrun --nproc-per-node N -m minipnp evaluate …` "
        "N processes share the list. Methods, metrics and layouts: docs/evaluation.md."
    )
    here.add_argument("benchmark", nargs="?", help="bundled (the default), or a folder of TI2I or of PIE-Bench")
    here.add_argument("--methods", nargs="+", help="default: all, with their ablations", metavar="NAME")
    here.add_argument("--metrics", nargs="+", metavar="NAME",
                      help="clip, clip-acc, structure, background, icons, iou (default: icons iou for the bundled one, "
                           "clip structure for others, background too where there are masks)")  # fmt: skip
    here.add_argument("--limit", type=count, help="only N pairs, always the same ones; more can follow", metavar="N")
    here.add_argument("--out", help="a folder (default: out/evaluate-BENCHMARK)", metavar="PATH")
    here.add_argument("--pictures", help="keep the translations", action="store_true", default=None)
    here.add_argument("--measures", help="a folder with the weights of CLIP, DINO, SqueezeNet, instead of the hub",
                      metavar="FOLDER")  # fmt: skip
    here.add_argument("--steps", help="of every method, 1 to 999 (default: each method's own)", type=int)
    here.add_argument("--size", help="short side in pixels (default: the model's own)", type=count)
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
    here.add_argument("--width", help="in pixels (default: the model's own)", type=count)
    here.add_argument("--height", help="in pixels (default: the model's own)", type=count)
    model_options(here)


def seen_options(here: Parser, pictures: str, prompt: str) -> None:
    """Which pictures are looked at, and where x_t comes from."""
    here.add_argument("pictures", nargs="*", help=pictures, metavar="IMG")
    here.add_argument("--source", help="a picture generated from this text; repeat", action="append", metavar="TEXT")
    here.add_argument("--prompt", help=prompt, action="append", metavar="TEXT")
    here.add_argument("--noised", help="x_t of files by adding noise, as DIFT (default: DDIM inversion, as the paper)",
                      action="store_true", default=None)  # fmt: skip
    here.add_argument("--steps", help="of inverting and of generating, 1 to 999 (default: 50)", type=int, metavar="N")
    here.add_argument("--seed", help="of the noise; each picture has one more than the last (default: 0)", type=seed)
    here.add_argument("--size", help="short side in pixels (default: the model's own)", type=count)
    here.add_argument("--out", help="a folder, or NAME.png for one picture (default: out/IMG-COMMAND)", metavar="PATH")


SHOWS = "what the files show, once for all or once for each: their text in the network (default: none)"


USUAL_LAYER = "(default: 4, the paper's; 7 where the latent's side has less than 32 cells)"


ONE_T = {"help": "timestep, 1 to 999 (default: 541)", "type": int, "metavar": "T"}


def features_options(here: Parser) -> None:
    here.epilog = "One t: layers x pictures (Fig. 3). Several t, one layer: pictures x timesteps (Fig. 4). A: Fig. 6."
    seen_options(here, "pictures, or folders of pictures", SHOWS)
    here.add_argument("--of", help="any of f, q, k, A, words (default: f)", choices=("f", "q", "k", "A", "words"),
                      nargs="+", metavar="WHAT")  # fmt: skip
    here.add_argument("--layers", help="decoder layers, such as 4 or 4,7,11 (default: 1,4,7,11, for A, q, k without 1; "
                      "several t: one, as segment; words: all cross-attentions of one size)", type=rows,
                      metavar="LAYERS")  # fmt: skip
    here.add_argument("--t", help="timesteps, such as 981,741,541 (default: 541; words: the mean over all steps)",
                      type=numbers, metavar="T,…")  # fmt: skip
    here.add_argument("--smooth", help="enlarge maps bicubically (default: cells as blocks)", action="store_true",
                      default=None)  # fmt: skip
    here.add_argument("--raw", help="also the arrays, a safetensors file for each picture", action="store_true",
                      default=None)  # fmt: skip
    here.add_argument("--square", help="crop the centre to a square", action=ON_OR_OFF, default=None)
    model_options(here)


def correspond_options(here: Parser) -> None:
    seen_options(here, "A and B", SHOWS + "; with --pck {category} in it is the pair's")
    here.add_argument("--points", help="places of A, in pixels of its file (default: nine)", type=point, nargs="+",
                      metavar="X,Y")  # fmt: skip
    here.add_argument("--of", help="f, q or k (default: f)", choices=("f", "q", "k"))
    here.add_argument("--layer", help=f"of the decoder, 0 to 11 {USUAL_LAYER}", type=int, metavar="LAYER")
    here.add_argument("--t", **ONE_T)
    here.add_argument("--pck", help="instead of A and B: a folder of annotated pairs, as SPair-71k", metavar="FOLDER")
    here.add_argument("--split", help="of the folder (default: test)")
    here.add_argument("--alpha", help="correct within this share of the box's longer side (default: 0.1)", type=number)
    here.add_argument("--limit", help="at most so many pairs, evenly from all", type=int, metavar="N")
    model_options(here)


def segment_options(here: Parser) -> None:
    seen_options(here, "pictures, or folders of pictures: parts that are alike share a colour", SHOWS)
    here.add_argument("--parts", help="how many (default: 4)", type=int, metavar="K")
    here.add_argument("--of", help="f, q or k (default: f), beside self-attention", choices=("f", "q", "k"))
    here.add_argument("--layer", help=f"of the decoder, 3 to 11 {USUAL_LAYER}", type=int, metavar="LAYER")
    here.add_argument("--t", **ONE_T)
    here.add_argument("--cluster-seed", help="of k-means (default: 0)", type=seed, metavar="SEED")
    here.add_argument("--square", help="crop the centre to a square", action=ON_OR_OFF, default=None)
    model_options(here)


def injection_options(here: Parser) -> None:
    option = partial(setting, "translate", here)
    here.add_argument("pictures", nargs="*", help="the guidance", metavar="IMG")
    here.add_argument("--prompt", help="what to make of it", action="append", metavar="TEXT")
    here.add_argument("--negative", help="what to keep away from, instead of the empty prompt", metavar="TEXT")
    here.add_argument("--seed", help="of the random x_T (default: 1)", type=seed)
    option("--steps", "steps of the translation, 1 to 999", type=int)
    option("--tau-f", "share of the steps in which f is injected", type=number)
    option("--tau-a", "share of the steps in which A is", dest="tau_A", type=number)
    option("--scale", "guidance scale w of Eq. (5)", type=number)
    here.add_argument("--size", help="short side in pixels (default: the model's own)", type=count)
    here.add_argument("--square", help="crop the centre to a square", action=ON_OR_OFF, default=None)
    here.add_argument("--out", help="a folder, or NAME.png (default: out/IMG-injection)", metavar="PATH")
    inversion_options(here)
    model_options(here)


def model_options(here: Parser) -> None:
    model = here.add_argument_group("model")
    model.add_argument("--model", help="bundled, sd15, a file, a folder, a hub id (default: sd15 if there, or bundled)")
    model.add_argument("--vae", help="take the VAE from this file or folder", metavar="PATH")
    model.add_argument("--prediction-type", help="of the UNet, where its files do not say", choices=("epsilon", "v"))
    model.add_argument("--ema", help="take the averaged weights of a single file", action=ON_OR_OFF, default=None)
    model.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    model.add_argument("--dtype", help="float32, float16 or bfloat16 (default: float16 on CUDA, else float32)")
    model.add_argument("--low-memory", help="one network at a time on the device", action="store_true", default=None)
    model.add_argument("--compile", help="torch.compile: minutes to begin with", action="store_true", default=None)
    here.add_argument("--quiet", help="no progress, only notes and errors", action="store_true", default=None)
