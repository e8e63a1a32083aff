"""The one exception that a user's mistake ends in, and the one line that is said of an error."""

import errno
import re


class InputError(ValueError):
    """Something that was asked for or given cannot be used.

    The message is one line that says what is wrong and what to do. The command line prints it and exits with 2.
    """


class NoRoom(InputError):
    """A disk is full. Nothing more can be written there: whoever goes on from picture to picture stops."""


def is_full(error: BaseException) -> bool:
    """Whether an error of the system, or of a library that puts one in words, says that a disk or a quota is full."""
    return isinstance(error, NoRoom) or (
        getattr(error, "errno", None) in FULL or re.search(rf"os error ({'|'.join(map(str, FULL))})\b", str(error))
    )


FULL = (errno.ENOSPC, errno.EDQUOT)


def cannot_write(path: object, error: BaseException) -> InputError:
    """What is said of an error in writing there."""
    if is_full(error):
        return NoRoom(f"cannot write {str(path)!r}: there is no room on its disk; make room and run this again")
    return InputError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}")


def explain(error: Exception) -> str | None:
    """One line for bad input, for lack of memory and of disk; None for what is a defect of this program."""
    if isinstance(error, InputError):
        return " ".join(str(error).splitlines())
    lack = "out of memory|not enough memory|can't allocate memory"  # CUDA, MPS; Windows; Linux
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(lack, str(error))):
        return "not enough memory: try a smaller --size, --dtype float16 or bfloat16, or another --device"
    if isinstance(error, OSError) and is_full(error):
        return str(cannot_write(error.filename or "a file", error))
    if isinstance(error, OSError):  # a folder that may not be read
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return None
