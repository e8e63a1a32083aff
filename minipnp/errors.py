"""The one exception that a user's mistake ends in, and the one line that is said of an error."""

import errno
import re

# What a lack of memory is called by CUDA and MPS; Windows; Linux; MPS, of one tensor; cuBLAS and cuDNN.
_LACK = re.compile(
    "out of memory|not enough memory|can(no|')t allocate memory|invalid buffer size|STATUS_ALLOC_FAILED", re.IGNORECASE
)
FULL = (errno.ENOSPC, errno.EDQUOT)


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


def cannot_write(path: object, error: BaseException) -> InputError:
    """What is said of an error in writing there."""
    if is_full(error):
        return NoRoom(f"cannot write {str(path)!r}: there is no room on its disk; make room and run this again")
    return InputError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}")


def explain(error: Exception) -> str | None:
    """One line for bad input, for lack of memory and of disk; None for what is a defect of this program."""
    if isinstance(error, InputError):
        return " ".join(str(error).splitlines())
    if is_lack_of_memory(error):
        return "not enough memory: try a smaller --size; on a GPU, where not given yet, --low-memory or --dtype float16"
    if isinstance(error, OSError) and is_full(error):
        return str(cannot_write(error.filename or "a file", error))
    if isinstance(error, OSError):  # a folder that may not be read
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return None


def is_lack_of_memory(error: Exception) -> bool:
    """Whether the memory was too short, of the device or of the CPU. PyTorch has a class for it on CUDA only."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return _LACK.search(str(error)) is not None
    return isinstance(error, MemoryError)
