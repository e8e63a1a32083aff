"""Picture files: find, read, fit to the network's sizes, show side by side, write.

The core never needs this. What passes between the two is a tensor [1, 3, H, W] with values in [-1, 1].
"""

import contextlib
import io
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from minipnp.errors import InputError
from minipnp.files.atomic import atomic
from minipnp.weights import listed

SUFFIXES = set(
    ".png .apng .jpg .jpeg .jfif .webp .avif .gif .bmp .tif .tiff .jp2 .ppm .pgm .pbm .tga .qoi .ico".split()
)


OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")


SMALLEST = 16  # px: a picture with a shorter side shows nothing that could be followed


METADATA = 64 << 20  # bytes of one text or colour profile in a PNG that are read; Pillow's own limit is 1 MB


LONGEST = 4  # times the short side: attention's memory grows with the square of the area


LOSS = 0.02  # of a side: what is cut off unseen


def _unreadable(path, error: Exception) -> InputError:
    name = repr(str(path))  # repr, so that a line break in a file's name stays inside the one line
    if isinstance(error, FileNotFoundError):
        return InputError(f"no such file: {name}")
    if isinstance(error, PermissionError):
        return InputError(f"no permission to read {name}")
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return InputError(f"{name} has too many pixels (more than {Image.MAX_IMAGE_PIXELS:,}): make it smaller first")
    if isinstance(error, UnidentifiedImageError):
        return InputError(f"{name} is not a picture, or of a kind not known here: save it as PNG or JPEG")
    if "MAX_TEXT" in str(error):
        return InputError(f"{name} has over {METADATA >> 20} MB of text or colour profile: save it without metadata")
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    return InputError(f"cannot read the picture {name}, is it damaged or cut short? ({reason})")


def find_images(path) -> list[Path]:
    """A file: itself. A folder: the pictures right in it (by suffix; not the hidden ones), img2 before img10.

    A warning says what else is in the folder. Raises InputError where there is no such path, or no picture in it.
    """
    path = Path(path)
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return [path]
        entries = [p for p in path.iterdir() if p.name[0] != "." and p.name.lower() not in OF_THE_SYSTEM]
        found = [p for p in entries if p.suffix.lower() in SUFFIXES and p.is_file()]
        left_out = _why_left_out([p for p in entries if p not in found])
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not found:
        raise InputError(f"no pictures in the folder {str(path)!r}{left_out and ': '}{left_out}")
    if left_out:
        warnings.warn(f"{str(path)!r}: left out: {left_out}", stacklevel=2)
    # Split at digits, every odd part is a number: ["img", 10, ".png"]. The name itself settles img1 and img01.
    parts = {p: [int(s) if i % 2 else s.casefold() for i, s in enumerate(re.split(r"(\d+)", p.name))] for p in found}
    return sorted(found, key=lambda p: (parts[p], p.name))


def _why_left_out(entries: list[Path]) -> str:
    """What in a folder is no picture, by the reason."""
    reasons = {
        "folders in it are not searched": [p for p in entries if p.is_dir()],
        "not there: a link that leads nowhere": [p for p in entries if not p.exists()],
        "a kind of picture that is not known here, or none: save pictures as PNG or JPEG": [
            p for p in entries if p.exists() and not p.is_dir()
        ],
    }
    return "; ".join(f"{listed({repr(p.name) for p in found})} ({why})" for why, found in reasons.items() if found)


def read_image(path) -> Image.Image:
    """Any picture file -> RGB as a viewer shows it: upright, sRGB, on white where transparent, the first frame.

    Integer grey of 16 bits is scaled by its whole range; floating-point grey by 1, or by 255 where it exceeds 16.
    Raises InputError, one line with the file's name, for everything that cannot be read as a picture.
    """
    name = repr(str(path))
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name} is a folder, not a picture")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is not a regular file")
        if status.st_size == 0:
            raise InputError(f"{name} is an empty file")
        try:
            return _decoded(path, name)
        except ValueError as error:
            if "MAX_TEXT" not in str(error):
                raise
        with _much_metadata():
            return _decoded(path, name)
    except InputError:
        raise
    except Exception as error:  # decoders raise anything at all on damaged data
        raise _unreadable(path, error) from None


def _decoded(path, name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            if picture.format == "EPS":  # Pillow would run Ghostscript on it
                raise UnidentifiedImageError
            picture.load()
            if min(picture.size) < SMALLEST:
                width, height = picture.size
                raise InputError(f"{name} is {width}x{height} pixels: each side must have at least {SMALLEST}")
            deep = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
            return _upright(_grey(picture, name) if deep else _srgb(picture), picture)


_limits = threading.Lock()


@contextlib.contextmanager
def _much_metadata() -> Iterator[None]:
    """Pillow's limits, which are the whole process's, raised for a while: sound pictures hold long texts."""
    with _limits:
        before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = METADATA, 4 * METADATA
        try:
            yield
        finally:
            PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def _grey(picture: Image.Image, name: str) -> Image.Image:
    """Grey of more than 8 bits -> RGB. (Pillow's own conversion clips at 255.)"""
    values = np.asarray(picture, dtype=np.float32)
    low = values.min()
    high = values.max()
    tiff = getattr(picture, "tag_v2", {})
    if picture.mode == "F":
        white = 255.0 if high > 16 else 1.0
    else:
        white = 4095.0 if tiff.get(258) == (12,) else 65535.0  # BitsPerSample
    if not (low >= 0 and high <= white):  # NaN too
        raise InputError(f"{name} has grey values from {low:g} to {high:g}: save it with 8 or 16 bits per channel")
    if tiff.get(262) == 0:  # PhotometricInterpretation: WhiteIsZero, which Pillow leaves as it is at these depths
        values = white - values
    values = np.where(values == picture.info.get("transparency"), white, values)
    return Image.fromarray(np.floor(values * (255 / white) + 0.5).astype(np.uint8)).convert("RGB")


def _srgb(picture: Image.Image) -> Image.Image:
    """8 bits per channel of any mode -> sRGB on white."""
    colour = picture
    if picture.mode not in ("L", "RGB", "CMYK"):
        colour = picture.convert("L" if picture.mode in ("1", "LA") else "RGB")
    if profile := picture.info.get("icc_profile"):
        with contextlib.suppress(Exception):  # a broken profile is passed over, as viewers do
            profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if colour.mode == "L" and profile.profile.xcolor_space.strip() == "RGB":
                colour = colour.convert("RGB")
            colour = ImageCms.profileToProfile(colour, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    colour = colour.convert("RGB")
    if not picture.has_transparency_data:
        return colour
    return Image.composite(colour, Image.new("RGB", colour.size, "white"), picture.convert("RGBA").getchannel("A"))


def _upright(pixels: Image.Image, picture: Image.Image) -> Image.Image:
    """pixels turned as the EXIF orientation of the opened picture says, without any metadata."""
    pixels.info = {}
    with contextlib.suppress(Exception):  # damaged EXIF data is no reason to refuse good pixels
        pixels.getexif()[0x0112] = picture.getexif().get(0x0112, 1)
        pixels = ImageOps.exif_transpose(pixels)
    return pixels


def fit(image: Image.Image, size: int, multiple: int, square: bool = False) -> Image.Image:
    """To the network's sizes by Lanczos: short side = size, aspect kept, then the least centred crop to multiples.

    square: the paper's way, a centred square crop first, then size x size. Warns of a crop that takes LOSS or more.
    Raises InputError for a size that is no multiple of `multiple`, and for a result longer than LONGEST * size.
    """
    if size < 1 or size % multiple:
        raise InputError(f"size {size} must be a positive multiple of {multiple}")
    short = min(image.size)
    if square:
        return _centre_crop(image, short, short).resize((size, size), Image.Resampling.LANCZOS)
    width, height = ((2 * side * size + short) // (2 * short) for side in image.size)  # to the nearest pixel
    cropped = width // multiple * multiple, height // multiple * multiple
    if max(cropped) > LONGEST * size:
        sides = f"{image.width}x{image.height}"
        most = f"{LONGEST}:1"
        raise InputError(f"a picture of {sides} pixels is too long (more than {most}): crop it first, or use --square")
    for side, before, after in zip(("width", "height"), (width, height), cropped, strict=True):
        if (loss := 1 - after / before) >= LOSS:
            warnings.warn(
                f"{loss:.0%} of the {side} is cut off: sides are multiples of {multiple} pixels", stacklevel=2
            )
    return _centre_crop(image.resize((width, height), Image.Resampling.LANCZOS), *cropped)


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left = (image.width - width) // 2
    top = (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture -> [1, 3, H, W] float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return (pixels.permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()


def to_image(x: torch.Tensor) -> Image.Image:
    """[1, 3, H, W] or [3, H, W], clamped to [-1, 1] -> RGB picture, to the nearest level. Inverse of to_tensor."""
    if x.shape[:-3] not in ((), (1,)) or x.shape[-3:-2] != (3,):
        raise ValueError(f"one RGB picture is [1, 3, H, W] or [3, H, W], not {list(x.shape)}")
    x = x.float().cpu()
    if not torch.isfinite(x).all():
        raise InputError("NaN in the picture")
    levels = (x.clamp(-1, 1) * 127.5 + 128).floor().to(torch.uint8)  # + 127.5, and + 0.5 to round
    return Image.fromarray(levels.reshape(x.shape[-3:]).permute(1, 2, 0).contiguous().numpy())


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio in dB of two pictures (or uint8 arrays) of one shape; inf where they are equal."""
    a = np.asarray(a)
    b = np.asarray(b)
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"psnr needs two uint8 pictures of one shape, not {a.dtype}{a.shape} and {b.dtype}{b.shape}")
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def write_png(image: Image.Image, path, settings: dict[str, str]) -> None:
    """PNG, written atomically, with settings as its text (iTXt: any Unicode). Same picture and settings, same bytes.

    Keys are Latin-1 of 1 to 79 characters (the PNG specification's keywords).
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        chunks.add_itxt(key, value.encode("utf-8", "backslashreplace"))  # half surrogates: bytes of the shell's
    with atomic(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
