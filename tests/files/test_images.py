"""Picture files: what a person expects of each kind, and one clear line for what cannot be used."""

import errno
import io
import math
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin
from safetensors import SafetensorError
from safetensors.torch import save_file

from minipnp.errors import InputError, NoRoom, explain
from minipnp.files.atomic import atomic, write_text_atomic
from minipnp.files.images import METADATA, find_images, fit, psnr, read_image, to_image, to_tensor, write_png

RAMP = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)  # every level once


def colours(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image, path, **options):
    image.save(path, **options)
    return path


def pixels(image):
    return np.asarray(image).astype(int)


def assert_grey(image, expected, tolerance=0):
    """All three channels equal expected [H, W]."""
    assert image.mode == "RGB"
    assert np.abs(pixels(image) - np.asarray(expected).astype(int)[..., None]).max() <= tolerance


def message(path, function=read_image) -> str:
    with pytest.raises(InputError) as raised:
        function(path)
    text = str(raised.value)
    assert "\n" not in text and text.isprintable()
    return text


# --- read_image ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "tga", "webp"])
def test_rgb_is_read_exactly(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    image = read_image(saved(colours(), tmp_path / f"a.{suffix}", **options))
    assert image.mode == "RGB" and np.array_equal(pixels(image), pixels(colours()))


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, kind):
    upright = colours()
    # The transposition that a camera held that way has made, of which the viewer's is the inverse.
    camera = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(camera[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    image = read_image(saved(stored, tmp_path / f"a.{kind}", exif=exif, **options))
    assert np.array_equal(pixels(image), pixels(upright))
    assert not image.info and 0x0112 not in image.getexif()  # or the next program would turn it again


def test_exif_orientation_of_16_bit_grey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = read_image(saved(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / "a.png", exif=exif))
    assert_grey(image, RAMP[::-1, ::-1])


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("damaged", [b"MM\0*\0\0\0\x08\xff\xff\x01\x12garbage", b"neither MM nor II"])
def test_damaged_exif_does_not_matter(tmp_path, damaged, kind):
    path = saved(colours(), tmp_path / f"a.{kind}", exif=b"Exif\0\0" + damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does it say so
        assert read_image(path).size == (24, 16)


def test_alpha_is_composited_on_white(tmp_path):
    red = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    red.paste((200, 0, 0, 255), (0, 0, 8, 16))
    red.putpixel((15, 0), (200, 0, 0, 128))
    image = pixels(read_image(saved(red, tmp_path / "a.png")))
    assert (image[:, :8] == (200, 0, 0)).all() and (image[1:, 8:] == 255).all()
    # 200*128/255 + 255*127/255 = 227.4 and 127; one level for rounding
    assert np.abs(image[0, 15] - (227, 127, 127)).max() <= 1


@pytest.mark.parametrize("kind", ["P index", "P alphas", "LA", "RGB key", "L key", "1 key", "I;16 key", "gif"])
def test_every_other_transparency(tmp_path, kind):
    half = np.arange(16 * 16).reshape(16, 16) % 16 >= 8  # the transparent half
    left = 255 if kind == "1 key" else 100
    levels = np.where(half, 7, left)
    if kind in ("P index", "P alphas", "gif"):
        image = Image.fromarray(half.astype(np.uint8)).convert("P")
        image.putpalette([100, 100, 100, 10, 20, 30])
        key = bytes([255, 0]) if kind == "P alphas" else 1
    elif kind == "LA":
        image, key = Image.merge("LA", [Image.fromarray(x.astype(np.uint8)) for x in (levels, 255 * ~half)]), None
    elif kind == "RGB key":
        image, key = Image.fromarray(levels.astype(np.uint8)).convert("RGB"), (7, 7, 7)
    elif kind == "L key":
        image, key = Image.fromarray(levels.astype(np.uint8)), 7
    elif kind == "1 key":
        image, key = Image.fromarray(~half), 0
    else:
        image, key = Image.fromarray((levels * 257).astype(np.uint16)), 7 * 257
    options = {} if key is None else {"transparency": key}
    path = saved(image, tmp_path / ("a.gif" if kind == "gif" else "a.png"), **options)
    assert_grey(read_image(path), np.where(half, 255, left))


def test_palette_grey_and_bilevel(tmp_path):
    palette = colours().quantize(16)
    assert np.array_equal(pixels(read_image(saved(palette, tmp_path / "p.png"))), pixels(palette.convert("RGB")))
    assert_grey(read_image(saved(Image.fromarray(RAMP), tmp_path / "l.png")), RAMP)
    assert_grey(read_image(saved(Image.fromarray(RAMP > 99), tmp_path / "1.png")), 255 * (RAMP > 99))
    inverted = {262: 0}  # TIFF, WhiteIsZero, as fax machines write it
    fax = saved(Image.fromarray(RAMP > 99), tmp_path / "1.tiff", tiffinfo=inverted)
    assert Image.open(fax).tag_v2[262] == 0
    assert_grey(read_image(fax), 255 * (RAMP > 99))


LEVELS_16 = (RAMP.astype(np.uint16) * 257).astype("<u2")  # 0..65535


def test_16_bit_grey_keeps_its_range(tmp_path):
    png = saved(Image.fromarray(LEVELS_16), tmp_path / "a.png")
    little = saved(Image.fromarray(LEVELS_16), tmp_path / "a.tiff")
    integers = saved(Image.fromarray(LEVELS_16.astype(np.int32)), tmp_path / "i.tiff")
    big = tmp_path / "b.tiff"
    big.write_bytes(tiff(">", LEVELS_16.astype(">u2").tobytes(), bits=16))
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 16 16 65535\n" + LEVELS_16.astype(">u2").tobytes())
    modes = {}
    for path in (png, little, integers, big, pgm):
        with Image.open(path) as image:
            modes[path.name] = image.mode
        assert_grey(read_image(path), RAMP)
    assert modes == {"a.png": "I;16", "a.tiff": "I;16", "i.tiff": "I", "b.tiff": "I;16B", "a.pgm": "I"}


def test_16_bit_grey_rounds_to_the_nearest_level(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    assert_grey(read_image(saved(Image.fromarray(values), tmp_path / "a.png")), np.round(values / 257.0))


def tiff(order: str, data: bytes, bits: int, photometric: int = 1) -> bytes:
    """An uncompressed grey TIFF of 16 x 16."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    short = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 16}
    entries = [(tag, 3, 1, struct.pack(order + "HH", value, 0)) for tag, value in short.items()]
    start = 8 + 2 + 12 * (len(short) + 2) + 4
    entries += [(tag, 4, 1, struct.pack(order + "I", value)) for tag, value in {273: start, 279: len(data)}.items()]
    table = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    header = magic + struct.pack(order + "IH", 8, len(entries))
    return header + table + struct.pack(order + "I", 0) + data


def test_tiff_where_white_is_zero_and_of_12_bits(tmp_path):
    path = tmp_path / "a.tiff"
    path.write_bytes(tiff("<", (65535 - LEVELS_16).astype("<u2").tobytes(), bits=16, photometric=0))
    assert_grey(read_image(path), RAMP)
    twelve = np.arange(256) * 16  # 0..4080 of 4095, two samples in three bytes
    first, second = twelve[0::2], twelve[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)
    path.write_bytes(tiff("<", packed.tobytes(), bits=12))
    assert_grey(read_image(path), np.round(twelve.reshape(16, 16) * 255 / 4095))


def test_float_grey(tmp_path):
    unit, byte = Image.fromarray(np.float32(RAMP / 255)), Image.fromarray(RAMP.astype(np.float32))
    assert_grey(read_image(saved(unit, tmp_path / "a.tiff")), RAMP)
    assert_grey(read_image(saved(byte, tmp_path / "b.tiff")), RAMP)
    for number, values in enumerate(([0, 1.5], [-1, 1], [0, 1000], [0, math.nan], [0, math.inf])):
        odd = Image.fromarray(np.resize(np.float32(values), (16, 16)))
        assert "grey values from" in message(saved(odd, tmp_path / f"{number}.tiff"))
    assert "grey values from" in message(saved(Image.new("I", (16, 16), 70000), tmp_path / "i.tiff"))


def test_cmyk(tmp_path):
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    path = saved(cyan, tmp_path / "a.tiff")
    assert (pixels(read_image(path)) == (0, 255, 255)).all()
    # Pillow writes CMYK JPEG as Adobe's programs do: inverted, with a marker that says so.
    path = saved(cyan, tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(pixels(read_image(path)) - (0, 255, 255)).max() <= 3  # JPEG's rounding


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path, kind):
    red, blue = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(red, tmp_path / f"a.{kind}", save_all=True, append_images=[blue, red], duration=100, **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert (pixels(read_image(path)) == (255, 0, 0)).all()


def matrix_profile() -> bytes:
    """An ICC profile of sRGB's white point and curve, with red and blue in each other's place."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_icc_profile_is_converted_to_srgb(tmp_path, mode):
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    red = red.quantize(4) if mode == "P" else red.convert(mode)
    image = read_image(saved(red, tmp_path / "a.png", icc_profile=matrix_profile()))
    assert np.abs(pixels(image) - (30, 30, 200)).max() <= 2  # profiles are tables of 16 bits
    assert "icc_profile" not in image.info
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = read_image(saved(red, tmp_path / "b.png", icc_profile=plain))
    assert np.abs(pixels(image) - (200, 30, 30)).max() <= 1


def test_grey_with_a_colour_profile(tmp_path):
    """Common: programs attach the screen's profile to grey pictures too. Then grey is what R = G = B would be."""
    profile = matrix_profile()
    curve = profile.index(b"para") + 12  # the exponent, 16.16 fixed point
    assert profile[curve : curve + 4] == (2 << 16 | 0x6666).to_bytes(4, "big")  # 2.4
    linear = profile[:curve] + (1 << 16).to_bytes(4, "big") + profile[curve + 4 :]
    grey = read_image(saved(Image.fromarray(RAMP), tmp_path / "l.png", icc_profile=linear))
    colour = read_image(saved(Image.fromarray(RAMP).convert("RGB"), tmp_path / "rgb.png", icc_profile=linear))
    assert np.array_equal(pixels(grey), pixels(colour)) and np.ptp(pixels(grey), axis=2).max() <= 1
    assert pixels(grey)[8, 0, 0] > RAMP[8, 0] + 40  # half the light is level 188 of sRGB


def test_profile_that_does_not_fit_is_passed_over(tmp_path):
    for number, profile in enumerate((b"nonsense", matrix_profile()[:200])):
        image = read_image(saved(colours(), tmp_path / f"{number}.png", icc_profile=profile))
        assert np.array_equal(pixels(image), pixels(colours()))
    cmyk = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path / "c.tiff", icc_profile=matrix_profile())
    assert (pixels(read_image(cmyk)) == (0, 255, 255)).all()


def with_metadata(path, kind: str, size: int) -> Path:
    """A PNG with so many bytes of compressed text, or in a compressed colour profile of sRGB's."""
    if kind == "profile":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(size)
        return saved(colours(), path, icc_profile=struct.pack(">I", len(profile)) + profile[4:])
    text = PngImagePlugin.PngInfo()
    {"zTXt": text.add_text, "iTXt": text.add_itxt}[kind]("workflow", "x" * size, zip=True)
    return saved(colours(), path, pnginfo=text)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "profile"])
def test_much_metadata_does_not_matter(tmp_path, kind):
    """Programs write whole workflows into PNGs. What Pillow allows the rest of the process stays as it is."""
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    path = with_metadata(tmp_path / "a.png", kind, 3_000_000)
    assert np.abs(pixels(read_image(path)) - pixels(colours())).max() <= (1 if kind == "profile" else 0)
    path = with_metadata(tmp_path / "b.png", kind, METADATA + 1)
    assert "b.png' has over 64 MB of text or colour profile: save it without" in message(path)
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_missing_folder_empty_and_text(tmp_path):
    assert message(tmp_path / "horse.png") == f"no such file: {str(tmp_path / 'horse.png')!r}"
    assert "is a folder" in message(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty.png' is an empty file" in message(tmp_path / "empty.png")
    (tmp_path / "page.png").write_text("<!doctype html><title>Not found</title>" * 9)
    assert "page.png' is not a picture" in message(tmp_path / "page.png")
    assert "no such file" in message(tmp_path / "two\nlines.png")
    assert "cannot read" in message(tmp_path / ("x" * 300 + ".png"))
    assert "cannot read" in message("nul\0.png")


def test_postscript_is_not_run(tmp_path, monkeypatch):
    path = saved(colours(), tmp_path / "a.eps")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("ran Ghostscript"))
    assert "not a picture" in message(path)


def test_fifo_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    thread = threading.Thread(target=message, args=(tmp_path / "a.png",), daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert "not a regular file" in message(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "tga", "jp2", "avif"])
def test_truncated(tmp_path, kind):
    path = saved(colours(64, 64), tmp_path / f"a.{kind}")
    data = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        assert f"a.{kind}'" in message(path)


def test_damaged_in_any_place(tmp_path):
    """Whatever byte is wrong: a picture, or an InputError."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (("png", {}), ("jpg", {}), ("gif", {}), ("tiff", {"compression": "tiff_lzw"}), ("webp", {})):
        path = saved(colours(), tmp_path / f"a.{kind}", exif=exif, **options)
        data = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(data)
            for place in random.integers(0, min(len(data), 300), 3):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged)
            try:
                assert read_image(path).mode == "RGB"
            except InputError as error:
                assert str(error).isprintable() and f"a.{kind}'" in str(error)


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000)], ids=["warning", "error"])
def test_decompression_bomb(tmp_path, size):
    """Pillow warns from 89 million pixels and refuses from twice as many; either ends here."""
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    header = struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    )
    assert "too many pixels" in message(path)
    assert Image.MAX_IMAGE_PIXELS == limit and warnings.filters == filters


def test_too_small(tmp_path):
    assert "is 15x40 pixels: each side must have at least 16" in message(saved(colours(15, 40), tmp_path / "a.png"))
    assert read_image(saved(colours(16, 40), tmp_path / "b.png")).size == (16, 40)


def test_no_permission(tmp_path, monkeypatch):
    path = saved(colours(), tmp_path / "a.png")
    if os.geteuid() == 0:  # root may read everything

        def refuse(*_):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("PIL.Image.builtins.open", refuse)
    else:
        path.chmod(0)
    assert message(path) == f"no permission to read {str(path)!r}"


# --- find_images -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("backwards", [False, True])
def test_find_images(tmp_path, monkeypatch, backwards):
    listed = Path.iterdir  # in any order
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=backwards))
    names = ["img10.png", "img2.JPG", "Img1.webp", "b.tiff", "img2a.png", "img2.png", "img02.png"]
    for name in names + [".hidden.png", "._img2.JPG", "notes.txt", "run.json", "png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "deep.png").touch()
    order = ["b.tiff", "Img1.webp", "img2.JPG", "img02.png", "img2.png", "img2a.png", "img10.png"]
    assert [p.name for p in find_images(tmp_path)] == order
    assert find_images(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]  # a file is what was asked for


def left_out(folder) -> str:
    """What is said of what find_images leaves out."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        find_images(folder)
    assert len(said) <= 1
    return "".join(str(warning.message) for warning in said)


def test_find_images_says_what_it_leaves_out(tmp_path):
    for name in ("a.png", ".hidden", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    assert left_out(tmp_path) == ""
    for name in ("IMG_1.HEIC", "IMG_2.heic", "plan.svg", "plan.pdf"):
        (tmp_path / name).touch()
    kind = "a kind of picture that is not known here, or none: save pictures as PNG or JPEG"
    assert left_out(tmp_path) == f"{str(tmp_path)!r}: left out: 'IMG_1.HEIC', 'IMG_2.heic', 'plan.pdf' … ({kind})"
    (tmp_path / "old").mkdir()
    (tmp_path / "b.png").symlink_to("gone.png")
    said = left_out(tmp_path)
    assert "'old' (folders in it are not searched)" in said and "'b.png' (not there: a link that leads nowhere)" in said


def test_find_images_of_pictures_of_no_kind_that_is_known(tmp_path):
    (tmp_path / "IMG_1.HEIC").touch()
    (tmp_path / "old").mkdir()
    said = message(tmp_path, find_images)
    assert "no pictures in the folder" in said and "'IMG_1.HEIC' (a kind of picture that is not known here" in said
    assert "PNG or JPEG" in said and "'old' (folders in it are not searched)" in said


def test_find_images_without_any(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "no pictures in the folder" in message(tmp_path, find_images)
    assert "no such file" in message(tmp_path / "nowhere", find_images)
    assert "cannot read" in message("nul\0", find_images)


# --- fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, fitted",
    [
        ((512, 512), (512, 512)),
        ((300, 300), (512, 512)),
        ((4000, 3000), (640, 512)),  # 683 x 512
        ((3000, 4000), (512, 640)),
        ((640, 512), (640, 512)),
        ((1279, 1024), (640, 512)),  # 639.5, to the nearest pixel: not 576
        ((1278, 1024), (576, 512)),  # 639
        ((2048, 512), (2048, 512)),
        ((2111, 512), (2048, 512)),
    ],
)
def test_fit_sizes(size, fitted):
    assert fit(Image.new("RGB", size), 512, 64).size == fitted


def test_fit_crops_the_centre_and_nothing_else():
    image = colours(64 + 38, 64)  # short side is the size already: no resampling
    left = (38 - 32) // 2
    assert np.array_equal(pixels(fit(image, 64, 16)), pixels(image)[:, left : left + 96])
    assert np.array_equal(pixels(fit(image, 64, 64)), pixels(image)[:, 19:83])
    tall = image.transpose(Image.Transpose.TRANSPOSE)
    assert np.array_equal(pixels(fit(tall, 64, 16)), pixels(tall)[left : left + 96])


def test_fit_square_crops_first_then_lanczos():
    image = colours(300, 200)
    expected = image.crop((50, 0, 250, 200)).resize((128, 128), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(fit(image, 128, 64, square=True)), pixels(expected))
    assert fit(Image.new("RGB", (5000, 100)), 128, 64, square=True).size == (128, 128)


def test_fit_is_lanczos_with_its_aspect_kept():
    image = colours(300, 200)
    whole = image.resize((192, 128), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(fit(image, 128, 64)), pixels(whole))


def test_fit_refuses():
    with pytest.raises(InputError, match="5000x100 pixels is too long .* crop it"):
        fit(Image.new("RGB", (5000, 100)), 512, 64)
    with pytest.raises(InputError, match="too long"):
        fit(Image.new("RGB", (512, 2112)), 512, 64)
    for size in (500, 0, -64):
        with pytest.raises(InputError, match=f"size {size} must be a positive multiple of 64"):
            fit(colours(), size, 64)


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_tensor_round_trip_is_exact_for_every_level():
    image = Image.fromarray(np.stack([RAMP, RAMP[::-1], RAMP.T], 2))
    x = to_tensor(image)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32 and x.is_contiguous()
    assert x.min() == -1 and x.max() == 1
    assert x[0, 1, 15, 3] == RAMP[0, 3] / 127.5 - 1  # [channel, row, column]
    for y in (x, x[0], x.double(), x.requires_grad_()):
        assert np.array_equal(pixels(to_image(y)), pixels(image))


def test_to_image_clamps_and_rounds_to_nearest():
    levels = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0, (2.4 - 127.5) / 127.5, (2.6 - 127.5) / 127.5])
    image = to_image(levels.expand(3, 1, -1))
    assert pixels(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255, 2, 3]  # 0 is level 127.5: away from zero


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_in_the_result(value, dtype):
    x = torch.zeros(1, 3, 8, 8, dtype=dtype)
    x[0, 1, 2, 3] = value
    with pytest.raises(InputError, match="NaN in the picture"):
        to_image(x)


def test_to_image_takes_one_picture():
    for shape in ((2, 3, 8, 8), (4, 8, 8), (3, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match="one RGB picture"):
            to_image(torch.zeros(shape))


# --- psnr ------------------------------------------------------------------------------------------------------------


def test_psnr():
    black, dark = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 1, np.uint8)
    assert psnr(black, dark) == psnr(dark, black) == pytest.approx(20 * math.log10(255))
    assert psnr(Image.fromarray(black), Image.new("RGB", (8, 8), "white")) == 0
    assert psnr(black, black) == math.inf
    with pytest.raises(ValueError, match="one shape"):
        psnr(black, black[:4])
    with pytest.raises(ValueError, match="uint8"):
        psnr(black / 255, black / 255)


# --- writing ---------------------------------------------------------------------------------------------------------

SETTINGS = {"prompt": 'a "bronze" horse\n$(reboot) 🐎 – тест', "negative prompt": "", "seed": "7"}


def test_png_holds_the_picture_and_its_settings(tmp_path):
    path = tmp_path / "out.png"
    write_png(colours(), path, SETTINGS)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.text == SETTINGS
        assert all(isinstance(value, PngImagePlugin.iTXt) for value in image.text.values())
        assert np.array_equal(pixels(image), pixels(colours()))
    assert os.listdir(tmp_path) == ["out.png"]
    first = path.read_bytes()
    write_png(colours(), path, SETTINGS)
    assert path.read_bytes() == first
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_png_is_a_png_under_any_name_and_takes_bytes_of_a_shell(tmp_path):
    path = tmp_path / ("x" * 251 + ".jpg")  # as long as a name may be
    write_png(colours(), path, {"prompt": "caf\udce9"})
    with Image.open(path) as image:
        assert image.format == "PNG" and image.text == {"prompt": "caf\\udce9"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_nothing_is_left_half_written(tmp_path, monkeypatch, error):
    path = tmp_path / "out.png"
    path.write_bytes(b"earlier")

    def interrupted(self, name, *args, **options):
        name.write_bytes(b"half")
        raise error("no space")

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(InputError if error is OSError else error, match="no space"):
        write_png(colours(), path, {})
    assert os.listdir(tmp_path) == ["out.png"] and path.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=repr,
)
def test_a_full_disk_is_told_from_other_errors(tmp_path, error):
    path = tmp_path / "x.safetensors"
    with pytest.raises(NoRoom, match=re.escape(f"cannot write {str(path)!r}: there is no room on its disk; make room")):
        with atomic(path):
            raise error
    assert os.listdir(tmp_path) == []
    for other in (OSError(errno.EACCES, "Permission denied"), SafetensorError("os error 280")):
        with pytest.raises(InputError) as raised, atomic(path):
            raise other
        assert not isinstance(raised.value, NoRoom)
    assert explain(OSError(errno.ENOSPC, "No space left on device", "o")).startswith(
        "cannot write 'o': there is no room"
    )


def test_permissions_do_not_depend_on_the_writer(tmp_path):
    umask = os.umask(0o027)
    try:
        with atomic(tmp_path / "a") as temporary:
            save_file({"x": torch.zeros(3)}, temporary)
        with atomic(tmp_path / "b") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(umask)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o640}


def test_earlier_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("earlier")
    with open(path) as reader:
        with atomic(path) as temporary:
            temporary.write_text("later")
            assert path.read_text() == "earlier" and temporary.parent == path.parent
        assert reader.read() == "earlier"  # it was replaced, not written over
    assert path.read_text() == "later" and os.listdir(tmp_path) == ["run.json"]


def test_text(tmp_path):
    write_text_atomic("🐎\nz\udcff\n", tmp_path / "run.json")
    assert (tmp_path / "run.json").read_bytes() == "🐎\nz\\udcff\n".encode()
    assert os.listdir(tmp_path) == ["run.json"]


def test_places_that_cannot_be_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", "", "."):
        assert "cannot write" in message(path, lambda p: write_text_atomic("x", p))
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_bytes_that_pass_through_reading_and_writing(tmp_path):
    """What was written is read again pixel by pixel, whatever the metadata."""
    write_png(colours(), tmp_path / "a.png", SETTINGS)
    again = read_image(tmp_path / "a.png")
    assert np.array_equal(pixels(again), pixels(colours())) and not again.info
    buffer = io.BytesIO()
    again.save(buffer, "PNG")
    assert b"iTXt" not in buffer.getvalue()
