"""Records of an evaluation: a JSON line for each picture that was made, in a file for each process.

A line is one write, and on the disk before the next picture is begun; a process that is killed in the middle of one
leaves a part of a line, which is cut off when the file is opened again.
"""

import errno
import json
import os
from pathlib import Path

from minipnp.errors import InputError, cannot_write


def read_records(folder: Path) -> tuple[dict[str, dict], int]:
    """The records of all processes by their key; how many lines are none.

    Of several with one key a result counts before an error, whichever file it is in; else the later in its file.
    """
    records = {}
    damaged = 0
    for file in sorted(folder.glob("*.jsonl")):
        *lines, _ = file.read_bytes().split(b"\n")  # behind the last line break: nothing, or a part of a line
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not is_record(record):
                damaged += 1
            elif "error" not in record or "error" in records.get(record["key"], record):
                records[record["key"]] = record
    return records, damaged


def is_record(record: object) -> bool:
    """Whether it has a key, and values that are numbers, or an error."""
    match record:
        case {"key": str(), "values": dict(values)}:
            return all(isinstance(value, float | int) for value in values.values())
        case {"key": str(), "error": str()}:
            return True
    return False


class Writer:
    """Appends to this process's file. InputError: another process has it open, or it cannot be written."""

    def __init__(self, folder: Path, part: str):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"{part}.jsonl"
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._lock()
            content = self.path.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self.file, content.rfind(b"\n") + 1)
        except OSError as error:
            raise cannot_write(folder, error) from None

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another evaluation is writing there; wait for it, or give another --out"
            ) from None

    def append(self, record: dict) -> None:
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            if os.write(self.file, line) != len(line):  # the rest of a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        os.close(self.file)
