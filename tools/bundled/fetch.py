"""Step 1: the icon sets, through the npm client. → data/bundled/sets/NAME.json and licences.json

Each set is one npm package, pinned by version and by the registry's own checksum, and refused unless its licence is one
that lets anyone use, change and pass on what is made of it under terms of their own (no share-alike).
"""

import argparse
import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tqdm import tqdm

from minipnp.errors import InputError
from minipnp.files.atomic import write_text_atomic
from tools.bundled import run

DATA = Path("data/bundled")

# name: version. SHA512: of each package, as npm's lock files write it.
SETS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione": "1.2.3",
    "emojione-monotone": "1.2.1",
    "fxemoji": "1.2.2",
}
SHA512 = {
    "noto":
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    "noto-v1":
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    "twemoji":
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    "fluent-emoji":
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    "fluent-emoji-flat":
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    "fluent-emoji-high-contrast":
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    "emojione":
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    "emojione-monotone":
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
    "fxemoji":
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
}  # fmt: skip
FREE = ("MIT", "Apache-2.0", "CC-BY-4.0")


def fetch(name: str, into: Path) -> dict:
    """The set's icons and what it says of itself, from the cache or the registry.

    InputError: there is no npm, or it brings another package, or the licence is not one of FREE.
    """
    version = SETS[name]
    kept = into / f"{name}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"]
            try:
                subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            except (OSError, subprocess.CalledProcessError) as error:
                raise InputError(f"`{' '.join(command)}` failed ({error}); it needs npm and a network") from None
            (package,) = Path(folder).glob("*.tgz")
            if base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() != SHA512[name]:
                raise InputError(f"@iconify-json/{name}@{version}: not the package that this recipe was written for")
            with tarfile.open(package) as tar:
                icons = json.load(tar.extractfile("package/icons.json"))
                icons["info"] = json.load(tar.extractfile("package/info.json"))
        write_text_atomic(json.dumps(icons, ensure_ascii=False), kept)
    icons = json.loads(kept.read_text(encoding="utf-8"))
    check_licence(name, icons["info"]["license"])
    return icons


def check_licence(name: str, licence: dict) -> None:
    if licence.get("spdx") not in FREE:
        raise InputError(f"@iconify-json/{name} is under {licence}; this recipe takes {', '.join(FREE)} only")


def licence_of(name: str, icons: dict) -> dict[str, str]:
    info = icons["info"]
    return {
        "set": f"@iconify-json/{name}",
        "version": SETS[name],
        "title": info["name"],
        "author": info["author"]["name"],
        "source": info["author"]["url"],
        "licence": info["license"]["spdx"],
        "licence_text": info["license"]["url"],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args(argv).data
    (data / "sets").mkdir(parents=True, exist_ok=True)
    (data / ".gitignore").write_text("*\n")  # a cache, however large
    licences = [licence_of(name, fetch(name, data / "sets")) for name in tqdm(SETS, "fetch")]
    write_text_atomic(json.dumps(licences, ensure_ascii=False, indent=1) + "\n", data / "licences.json")


if __name__ == "__main__":
    run(main)
