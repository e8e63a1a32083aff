"""The commands about models: `weights` fetches Stable Diffusion 1.5, `words` lists what prompts may say."""

from pathlib import Path

from minipnp.app.models import model_of
from minipnp.app.options import MODEL, Parser, add
from minipnp.errors import InputError
from minipnp.files import hub
from minipnp.files.known_words import FILE, KnownWords
from minipnp.options import NAME


def weights_options(here: Parser) -> None:
    add(here, "--dtype", "fp16 (2.1 GB, the default) or fp32 (4.3 GB)", NAME)
    add(here, "--repo", "a hub id with the same files, should the usual one disappear", NAME)
    here.add_argument("-h", "--help", help="show this help and exit", action="help")


def words_options(here: Parser) -> None:
    add(here, "--model", "bundled, or a folder (default: as for translate)", MODEL)
    here.add_argument("-h", "--help", help="show this help and exit", action="help")


def weights_command(given: dict, argv: list[str]) -> int:
    hub.fetch(**given)
    return 0


def words_command(given: dict, argv: list[str]) -> int:
    """What a model's prompts may say."""
    if given.get("model") not in (None, "bundled", "sd15") and not Path(given["model"]).exists():
        raise InputError(f"no model {given['model']!r} here: give bundled, or a folder")
    path, _ = model_of(given)
    print(KnownWords.of(path) or f"{path} has no {FILE}: say anything, in English")
    return 0
