"""`--like`: the defaults of the authors' two codebases, which differ from each other and from those here."""

PRESETS: dict[str, dict[str, object]] = {
    "minipnp": {},
    "pnp-diffusers": {"inversion_steps": 999, "inversion_at": "next", "fixed_point": 0},
    "plug-and-play": {
        "inclusive": True,
        "scale": 10.0,
        "alpha": 1.0,
        "alpha_schedule": "linear",
        "inversion_steps": 999,
        "inversion_at": "current",
        "fixed_point": 0,
        "resample": 999,
        "square": True,
        "vae_sampled": True,
        "both": True,
    },
}
OF_GENERATED = {"plug-and-play": {"scale": 7.5, "alpha": 0.75}}  # where the guidance is generated from a text
SOURCE_IS_NEGATIVE = {"plug-and-play"}  # the source's text is the negative prompt, where none is given


def preset(like: str, generated: bool) -> dict[str, object]:
    """The options that a codebase sets, by name."""
    return PRESETS[like] | (OF_GENERATED.get(like, {}) if generated else {})
