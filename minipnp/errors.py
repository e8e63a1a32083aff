"""The one exception that a user's mistake ends in, and the one line that is said of an error."""

import re


class InputError(ValueError):
    """Something that was asked for or given cannot be used.

    The message is one line that says what is wrong and what to do. The command line prints it and exits with 2.
    """


def explain(error: Exception) -> str | None:
    """One line for bad input, for lack of memory and of disk; None for what is a defect of this program."""
    if isinstance(error, InputError):
        return " ".join(str(error).splitlines())
    lack = "out of memory|not enough memory|can't allocate memory"  # CUDA, MPS; Windows; Linux
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(lack, str(error))):
        return "not enough memory: try a smaller --size, --dtype float16 or bfloat16, or another --device"
    if isinstance(error, OSError):  # no room on a disk, a folder that may not be read
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return None
