"""Draws docs/unet.svg from the table in minipnp/unet.py: the UNet, and where Plug-and-Play injects.

usage: python -m tools.draw_unet [out.svg]
"""

import sys
from pathlib import Path

from minipnp.config import UNetConfig
from minipnp.pnp import PnP
from minipnp.slots import Layer, Part
from minipnp.unet import DECODER, ENCODER, MIDDLE

ROW, WIDTH, GAP = 34, 330, 180  # of a box, and between encoder and decoder
LEFT, TOP = 30, 96
NAMES = {"R": "ResBlock", "T": "self- + cross-attention", "up": "↑2", "down": "↓2 conv", "conv": "conv"}
GREY, BLUE, ORANGE, INK = "#eef0f3", "#cfe3fb", "#ffd9a8", "#1d2733"


def box(x: float, y: float, title: str, text: str, fill: str, note: str = "") -> str:
    parts = [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{ROW - 6}" rx="5" fill="{fill}" stroke="#9aa5b1"/>',
        f'<text x="{x + 10}" y="{y + 19}" font-weight="600">{title}</text>',
        f'<text x="{x + 38}" y="{y + 19}">{text}</text>',
    ]
    if note:
        parts.append(f'<text x="{x + WIDTH + 10}" y="{y + 19}" font-weight="600">{note}</text>')
    return "".join(parts)


def contents(row) -> str:
    return " + ".join(NAMES[part] for part in row.what.split())


def drawing() -> str:
    settings, config = PnP(), UNetConfig()
    right = LEFT + WIDTH + GAP
    height = TOP + 13 * ROW + 120
    parts = []
    for i in range(12):  # encoder row i beside decoder row 11 − i, which takes its output in
        y = TOP + i * ROW
        encoder, decoder = ENCODER[i], DECODER[11 - i]
        layer = Layer(Part.DECODER, 11 - i)
        f, A = layer in settings.f_layers, layer in settings.A_layers
        fill = ORANGE if f else BLUE if A else GREY
        parts.append(box(LEFT, y, str(i), contents(encoder), GREY))
        parts.append(box(right, y, str(11 - i), contents(decoder), fill, "f and A" if f else "A" if A else ""))
        parts.append(
            f'<path d="M{LEFT + WIDTH + 6} {y + 14} H{right - 8}" stroke="#9aa5b1" stroke-dasharray="4 4" '
            'marker-end="url(#tip)"/>'
        )
        if i == 0 or DECODER[12 - i].level != decoder.level:
            side = config.size >> decoder.level
            label = f"{side}×{side}, {config.channels[decoder.level]} channels"
            middle = LEFT + WIDTH + GAP / 2
            parts.append(f'<text x="{middle}" y="{y + 9}" text-anchor="middle" class="small">{label}</text>')
    y = TOP + 12 * ROW + 24
    x = LEFT + (WIDTH + GAP) / 2
    parts.append(box(x, y, "mid", "&#160;" * 4 + contents(MIDDLE[0]).replace(NAMES["T"], "attentions"), GREY))
    down, bottom = TOP + 12 * ROW, y + 14
    for path in (
        f"M{LEFT + WIDTH / 2} {down - 4} V{bottom} H{x - 6}",
        f"M{x + WIDTH + 2} {bottom} H{right + WIDTH / 2} V{down - 2}",
    ):
        parts.append(f'<path d="{path}" fill="none" stroke="{INK}" marker-end="url(#tip)"/>')
    heads = [
        (LEFT, "Encoder", "in: x_t (4×64×64), t, text"),
        (right, "Decoder (the paper's layers 0–11)", "out: ε_θ(x_t, P, t)"),
    ]
    for x, title, text in heads:
        parts.append(f'<text x="{x}" y="{TOP - 34}" font-size="17" font-weight="600">{title}</text>')
        parts.append(f'<text x="{x}" y="{TOP - 14}" class="small">{text}</text>')
    parts.append(
        f'<text x="{LEFT}" y="28" font-size="19" font-weight="700">ε_θ of Stable Diffusion 1.5 at 512 × 512</text>'
    )
    y = TOP + 13 * ROW + 62
    for x, fill, text in (
        (LEFT, ORANGE, "f: this ResBlock's branch is taken from the guidance (first 40 of 50 steps)"),
        (LEFT, BLUE, "A: queries and keys of the self-attention are taken from the guidance (first 25 of 50 steps)"),
    ):
        parts.append(f'<rect x="{x}" y="{y}" width="22" height="15" rx="3" fill="{fill}" stroke="#9aa5b1"/>')
        parts.append(f'<text x="{x + 30}" y="{y + 12}">{text}</text>')
        y += 24
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
    )
    width = right + WIDTH + 90
    style = (
        f"text{{font-family:Helvetica,Arial,sans-serif;font-size:14px;fill:{INK}}}.small{{font-size:13px;fill:#46505c}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{style}</style>{tip}<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs" / "unet.svg")
    out.write_text(drawing(), encoding="utf-8")
    print(out)
