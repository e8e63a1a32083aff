"""Names of results, made of the names of pictures and of texts."""

import os
import re
from pathlib import Path


def stem(path: Path) -> str:
    """The name of a picture's results: a folder, so not in .png."""
    path = Path(os.path.abspath(path))
    name = path.name if path.is_dir() else path.stem
    return re.sub(r"\.png$", "", name, flags=re.IGNORECASE)


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:60] or "picture"
