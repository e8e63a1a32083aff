"""Draws docs/translations.png: bundled guidance pictures above their translations by the bundled model.

usage: python -m tools.readme_picture [out.png]
"""

import sys
from pathlib import Path

import minipnp
from minipnp.files.hub import WEIGHTS
from minipnp.files.images import fit, read_image, to_image, to_tensor
from minipnp.see.sheet import side_by_side

PAIRS = {
    "house-fluent-emoji-high-contrast": "a glossy icon of a house on a teal background",
    "rocket-fluent-emoji-flat": "a silhouette icon of a rocket on a pink background",
    "cat-twemoji": "a twemoji icon of a tiger on a green background",
    "rabbit-fluent-emoji-high-contrast": "a noto icon of a rabbit on a yellow background",
    "red-apple-fluent-emoji": "a flat icon of a lemon on a purple background",
}


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs" / "translations.png")
    sd = minipnp.load(WEIGHTS / "bundled")
    edit = sd.advised(minipnp.PnP)
    guidance, made = [], []
    for name, prompt in PAIRS.items():
        picture = fit(read_image(WEIGHTS / "bundled" / "examples" / f"{name}.png"), sd.size, sd.multiple)
        G = minipnp.guidance_from_picture(sd, to_tensor(picture), keep=edit)
        guidance.append(picture)
        made.append(to_image(minipnp.translate(sd, G, [prompt], settings=edit)[0]))
        print(prompt, flush=True)
    side_by_side([guidance, made], [["guidance"] * len(PAIRS), list(PAIRS.values())]).save(out)
    print(out)


if __name__ == "__main__":
    main()
