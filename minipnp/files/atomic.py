"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from safetensors import SafetensorError

from minipnp.errors import InputError, cannot_write


@contextlib.contextmanager
def atomic(path):
    """Yields the path of a temporary file in the same folder that takes path's place only when the block succeeds.

    It gets the permissions of any new file, whatever wrote it. Whatever is raised, Ctrl-C too, leaves path as it was
    and no temporary file. Raises InputError where the system refuses to write, NoRoom where the disk is full.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if path.exists() and not path.is_file():  # os.replace would take the place of a device such as /dev/null
            raise InputError(f"cannot write {str(path)!r}: there is something that is not a regular file")
        temporary.touch(exist_ok=False)
        usual = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        os.chmod(temporary, usual)  # safetensors makes its files for their owner alone
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there after the replacement
            temporary.unlink()


def write_text_atomic(text: str, path) -> None:
    """text as UTF-8, written atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
