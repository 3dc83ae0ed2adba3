"""Write a folder of awkward image files: every format and trap that users met.

``python -m tests.images.awkward_files`` writes the table of the page on formats.
"""

import io
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.Image import Transpose

from skpatchcore._images._files import accepted_formats
from skpatchcore._images._input import check_images

PAGE = Path(__file__).parents[2] / "docs/how_to/image_formats.md"
START, END = "<!-- table of files -->", "<!-- end of table -->"

_RNG = np.random.default_rng(0)
#: Blocks of one colour, which JPEG stores unblurred, and the same with 16 bits.
COLORS = _RNG.integers(40, 216, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
COLORS_16 = COLORS.astype(np.uint16) * 256 + _RNG.integers(
    0, 256, COLORS.shape, np.uint16
)
GREY, GREY_16 = COLORS[..., 1], COLORS_16[..., 1]
ALPHA = np.full(GREY.shape, 255, np.uint8)
ALPHA[:16, :24] = 0
ALPHA[16:24] = 128


@dataclass(frozen=True, eq=False)
class Awkward:
    """A file, what is awkward about it, and what reading it must give."""

    name: str
    what: str
    write: Callable[[Path], object]
    #: The image in [0, 1], or None for an error that names the file.
    expected: np.ndarray | None
    tolerance: float = 1e-6


# Writers ------------------------------------------------------------------------------


def saved(array, file_format, **options):
    """Return a function that saves an array by Pillow."""
    return lambda path: Image.fromarray(array).save(path, file_format, **options)


def tiff(array, **options):
    """Return a function that saves an array by tifffile."""
    return lambda path: tifffile.imwrite(path, array, **options)


def data(content: bytes):
    return lambda path: path.write_bytes(content)


def encoded(image, file_format, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png_16(array: np.ndarray, color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of 16 bits, which Pillow writes only for grey images."""
    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = [
        (b"IHDR", header),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def huge_png(path: Path) -> None:
    """Write a PNG whose header states 3.6 billion pixels."""
    content = bytearray(png_16(GREY_16, 0))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)


def frames(file_format, **options):
    """Return a function that saves an animation or several pages."""

    def write(path: Path) -> None:
        first, *others = (Image.fromarray(np.roll(COLORS, 8 * i, 1)) for i in range(3))
        first.save(path, file_format, save_all=True, append_images=others, **options)

    return write


def rotated(file_format, orientation, stored_as, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(COLORS).transpose(stored_as)
    return lambda path: image.save(path, file_format, exif=exif, **options)


def with_thumbnail(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(COLORS, photometric="rgb")
        file.write(COLORS[::4, ::4], photometric="rgb", subfiletype=1)


def with_preview(path: Path) -> None:
    photo, preview = Image.fromarray(COLORS), Image.fromarray(COLORS[::4, ::4])
    photo.save(
        path, "MPO", save_all=True, append_images=[preview], quality=100, subsampling=0
    )


def imagej_stack(path: Path) -> None:
    """Write a stack as ImageJ does beyond 4 GB: with one directory for all pages."""
    description = "ImageJ=1.54f\nimages=6\nslices=6\n"
    tifffile.imwrite(path, GREY, description=description, metadata=None)


def float_lzw(path: Path) -> None:
    """Write a header of a kind that no decoder at hand knows."""
    tifffile.imwrite(path, COLORS / 255, photometric="rgb")
    content = bytearray(path.read_bytes())
    tag = struct.pack("<HHII", 259, 3, 1, 1)
    position = content.index(tag)
    content[position : position + len(tag)] = struct.pack("<HHII", 259, 3, 1, 5)
    path.write_bytes(content)


def replaced(content: bytes, old: bytes, new: bytes):
    assert old in content
    return data(content.replace(old, new, 1))


def deep_avif(path: Path) -> None:
    """Write an AVIF whose header states 10 bits per channel."""
    content = encoded(Image.fromarray(COLORS), "AVIF")
    content = content.replace(b"\x03\x08\x08\x08", b"\x03\x0a\x0a\x0a", 1)
    flags = content.index(b"av1C") + 6
    high_depth = bytes([content[flags] | 0x40])
    path.write_bytes(content[:flags] + high_depth + content[flags + 1 :])


def link_to(target: str):
    return lambda path: path.symlink_to(target)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


# The files ----------------------------------------------------------------------------

RGB, GREY_RGB = COLORS / 255, np.stack([GREY / 255] * 3, axis=-1)
RGB_16, GREY_RGB_16 = COLORS_16 / 65535, np.stack([GREY_16 / 65535] * 3, axis=-1)
ON_BLACK = RGB * (ALPHA / 255)[..., np.newaxis]
BITS = GREY > 127
BIT_RGB = np.stack([BITS.astype(float)] * 3, axis=-1)
RGBA = np.dstack([COLORS, ALPHA])
ALPHA_16 = ALPHA.astype(np.uint16) * 257
LOSSY = 0.06


def palette(**options):
    image = Image.fromarray(COLORS).quantize(16)
    return lambda path: image.save(path, "PNG", **options)


_QUANTIZED = Image.fromarray(COLORS).quantize(16)
PALETTE_RGB = np.asarray(_QUANTIZED.convert("RGB")) / 255
PALETTE_ON_BLACK = PALETTE_RGB * (np.asarray(_QUANTIZED) != 3)[..., np.newaxis]
KEY_16 = COLORS_16[0, 0]
KEYED = RGB_16 * (COLORS_16 != KEY_16).any(axis=2, keepdims=True)

PLAIN = [
    Awkward("plain.png", "8-bit colour PNG", saved(COLORS, "PNG"), RGB),
    Awkward("grey.png", "8-bit grey PNG", saved(GREY, "PNG"), GREY_RGB),
    Awkward(
        "baseline.jpg",
        "JPEG",
        saved(COLORS, "JPEG", quality=95, subsampling=0),
        RGB,
        LOSSY,
    ),
    Awkward(
        "PROGRESSIVE.JPG",
        "progressive JPEG, suffix in capitals",
        saved(COLORS, "JPEG", quality=95, subsampling=0, progressive=True),
        RGB,
        LOSSY,
    ),
    Awkward("bitmap.bmp", "BMP", saved(COLORS, "BMP"), RGB),
    Awkward("colour.ppm", "PPM", saved(COLORS, "PPM"), RGB),
    Awkward("grey.pgm", "PGM", saved(GREY, "PPM"), GREY_RGB),
    Awkward("lossless.webp", "WebP", saved(COLORS, "WEBP", lossless=True), RGB),
    Awkward("wavelets.jp2", "JPEG 2000", saved(COLORS, "JPEG2000"), RGB),
    Awkward(
        "photo.avif",
        "AVIF",
        saved(COLORS, "AVIF", quality=95, subsampling="4:4:4"),
        RGB,
        LOSSY,
    ),
    Awkward("still.gif", "GIF with one frame", saved(GREY, "GIF"), GREY_RGB),
    Awkward("targa.tga", "TGA", saved(COLORS, "TGA"), RGB),
    Awkward("targa_grey.tga", "TGA, grey, RLE", saved(GREY, "TGA", rle=True), GREY_RGB),
    Awkward("paintbrush.pcx", "PCX", saved(COLORS, "PCX"), RGB),
    Awkward("silicon.sgi", "SGI", saved(COLORS, "SGI"), RGB),
    Awkward(
        "icon.ico",
        "ICO with one icon",
        saved(COLORS, "ICO", sizes=[(64, 48)]),
        RGB,
    ),
    Awkward("lzw.tif", "TIFF, LZW", saved(COLORS, "TIFF", compression="tiff_lzw"), RGB),
    Awkward(
        "tiled.tiff",
        "TIFF in tiles",
        tiff(COLORS, photometric="rgb", tile=(16, 16)),
        RGB,
    ),
    Awkward(
        "planar.tif",
        "TIFF, one plane per channel",
        tiff(np.moveaxis(COLORS, -1, 0), photometric="rgb", planarconfig="separate"),
        RGB,
    ),
    Awkward("big.tif", "BigTIFF", tiff(COLORS, photometric="rgb", bigtiff=True), RGB),
    Awkward(
        "ycbcr.tif",
        "TIFF, JPEG in YCbCr",
        saved(COLORS, "TIFF", compression="jpeg", quality=95),
        RGB,
        0.15,
    ),
]
DEEP = [
    Awkward("grey_16.png", "16-bit grey PNG", data(png_16(GREY_16, 0)), GREY_RGB_16),
    Awkward("colour_16.png", "16-bit colour PNG", data(png_16(COLORS_16, 2)), RGB_16),
    Awkward(
        "key_16.png",
        "16-bit colour PNG, one colour transparent",
        data(png_16(COLORS_16, 2, (b"tRNS", KEY_16.astype(">u2").tobytes()))),
        KEYED,
    ),
    Awkward(
        "alpha_16.png",
        "16-bit colour PNG with alpha",
        data(png_16(np.dstack([COLORS_16, ALPHA_16]), 6)),
        RGB_16 * (ALPHA_16 / 65535)[..., np.newaxis],
    ),
    Awkward(
        "grey_alpha_16.png",
        "16-bit grey PNG with alpha",
        data(png_16(np.dstack([GREY_16, ALPHA_16]), 4)),
        GREY_RGB_16 * (ALPHA_16 / 65535)[..., np.newaxis],
    ),
    Awkward(
        "grey_16.pgm",
        "16-bit PGM",
        data(b"P5 64 48 65535\n" + GREY_16.astype(">u2").tobytes()),
        GREY_RGB_16,
    ),
    Awkward(
        "grey_12.pgm",
        "12-bit PGM",
        data(b"P5 64 48 4095\n" + (GREY_16 >> 4).astype(">u2").tobytes()),
        np.stack([(GREY_16 >> 4) / 4095] * 3, -1),
        1e-5,
    ),
    Awkward("grey_16.tif", "16-bit grey TIFF", tiff(GREY_16), GREY_RGB_16),
    Awkward(
        "grey_16_be.tif",
        "16-bit grey TIFF, big-endian",
        tiff(GREY_16, byteorder=">"),
        GREY_RGB_16,
    ),
    Awkward(
        "colour_16.tif",
        "16-bit colour TIFF",
        tiff(COLORS_16, photometric="rgb"),
        RGB_16,
    ),
    Awkward(
        "colour_16_be.tif",
        "16-bit colour TIFF, big-endian, deflate",
        tiff(
            COLORS_16,
            photometric="rgb",
            byteorder=">",
            compression="zlib",
            predictor=True,
        ),
        RGB_16,
    ),
    Awkward(
        "planar_16.tif",
        "16-bit colour TIFF, one plane per channel",
        tiff(np.moveaxis(COLORS_16, -1, 0), photometric="rgb", planarconfig="separate"),
        RGB_16,
    ),
    Awkward(
        "alpha_16.tif",
        "16-bit colour TIFF with alpha",
        tiff(
            np.dstack([COLORS_16, ALPHA_16]),
            photometric="rgb",
            extrasamples=["unassalpha"],
        ),
        RGB_16 * (ALPHA_16 / 65535)[..., np.newaxis],
    ),
    Awkward(
        "grey_12.tif",
        "12-bit grey TIFF",
        lambda path: write_12_bits(path),
        np.stack([(GREY_16 >> 4) / 4095] * 3, -1),
        1e-6,
    ),
    Awkward(
        "float_16.tif",
        "TIFF of 16-bit floats",
        tiff((GREY / 255).astype(np.float16)),
        GREY_RGB,
        1e-3,
    ),
    Awkward(
        "float_32.tif",
        "TIFF of 32-bit floats",
        tiff((GREY / 255).astype(np.float32)),
        GREY_RGB,
    ),
    Awkward("float_64.tif", "TIFF of 64-bit floats", tiff(GREY / 255), GREY_RGB),
    Awkward(
        "float_colour.tif",
        "TIFF of floats, colour, deflate",
        tiff(RGB.astype(np.float32), photometric="rgb", compression="zlib"),
        RGB,
    ),
    Awkward(
        "float.pfm",
        "PFM",
        data(b"Pf\n64 48\n-1\n" + (GREY[::-1] / 255).astype("<f4").tobytes()),
        GREY_RGB,
    ),
    Awkward(
        "white_is_zero.tif",
        "TIFF in which 0 is white",
        tiff(255 - GREY, photometric="miniswhite"),
        GREY_RGB,
    ),
    Awkward(
        "white_is_zero_16.tif",
        "16-bit TIFF in which 0 is white",
        tiff(65535 - GREY_16, photometric="miniswhite"),
        GREY_RGB_16,
    ),
    Awkward(
        "white_is_zero_16_be.tif",
        "the same, big-endian",
        tiff(65535 - GREY_16, photometric="miniswhite", byteorder=">"),
        GREY_RGB_16,
    ),
]
COLOR_MODELS = [
    Awkward("palette.png", "PNG with a palette", palette(), PALETTE_RGB),
    Awkward(
        "palette_alpha.png",
        "PNG with a palette, one colour transparent",
        palette(transparency=3),
        PALETTE_ON_BLACK,
    ),
    Awkward("alpha.png", "PNG with alpha", saved(RGBA, "PNG"), ON_BLACK),
    Awkward(
        "grey_alpha.png",
        "grey PNG with alpha",
        saved(np.dstack([GREY, ALPHA]), "PNG"),
        GREY_RGB * (ALPHA / 255)[..., np.newaxis],
    ),
    Awkward(
        "alpha.webp",
        "WebP with alpha",
        saved(RGBA, "WEBP", lossless=True, exact=True),
        ON_BLACK,
    ),
    Awkward(
        "alpha.tif",
        "TIFF with alpha",
        tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]),
        ON_BLACK,
    ),
    Awkward("one_bit.png", "1-bit PNG", saved(BITS, "PNG"), BIT_RGB),
    Awkward(
        "fax.tif",
        "1-bit TIFF, fax compression",
        saved(BITS, "TIFF", compression="group4"),
        BIT_RGB,
    ),
    Awkward(
        "cmyk.jpg",
        "JPEG in CMYK",
        lambda path: (
            Image.fromarray(COLORS)
            .convert("CMYK")
            .save(path, "JPEG", quality=95, subsampling=0)
        ),
        RGB,
        LOSSY,
    ),
    Awkward(
        "exif_6.jpg",
        "JPEG rotated by EXIF",
        rotated("JPEG", 6, Transpose.ROTATE_90, quality=95, subsampling=0),
        RGB,
        LOSSY,
    ),
    Awkward(
        "exif_5.tif",
        "TIFF transposed by its orientation",
        rotated("TIFF", 5, Transpose.TRANSPOSE),
        RGB,
    ),
    Awkward(
        "exif_3.png", "PNG turned by EXIF", rotated("PNG", 3, Transpose.ROTATE_180), RGB
    ),
    Awkward("lab.tif", "TIFF in CIELAB", tiff(COLORS, photometric="cielab"), None),
    Awkward(
        "cmyk_16.tif",
        "16-bit TIFF in CMYK",
        tiff(np.dstack([COLORS_16, ALPHA_16]), photometric="separated"),
        None,
    ),
    Awkward(
        "five_bands.tif",
        "TIFF with five channels",
        tiff(
            np.dstack([COLORS, COLORS[..., :2]]), photometric="rgb", extrasamples=[0, 0]
        ),
        None,
    ),
    Awkward(
        "infrared.tif",
        "TIFF with a fourth channel that is not alpha",
        tiff(np.dstack([COLORS, GREY]), photometric="rgb", extrasamples=[0]),
        None,
    ),
    Awkward(
        "uint_32.tif", "TIFF of 32-bit integers", tiff(GREY.astype(np.uint32)), None
    ),
    Awkward(
        "int_16.tif",
        "TIFF of signed integers",
        tiff((GREY_16 >> 1).astype(np.int16)),
        None,
    ),
    Awkward(
        "float_255.tif", "TIFF of floats up to 255", tiff(GREY.astype(np.float32)), None
    ),
    Awkward(
        "float_nan.tif",
        "TIFF of floats with NaN",
        tiff(np.where(BITS, np.nan, 0.5)),
        None,
    ),
    Awkward("float_lzw.tif", "TIFF of floats, LZW", float_lzw, None),
    Awkward(
        "colour_16.ppm",
        "16-bit colour PPM",
        data(b"P6 64 48 65535\n" + COLORS_16.astype(">u2").tobytes()),
        None,
    ),
    Awkward(
        "colour_16.jp2",
        "16-bit colour JPEG 2000",
        replaced(
            encoded(Image.fromarray(COLORS), "JPEG2000"),
            b"\x00\x03\x07\x01\x01\x07\x01\x01\x07\x01\x01",
            b"\x00\x03\x0f\x01\x01\x0f\x01\x01\x0f\x01\x01",
        ),
        None,
    ),
    Awkward(
        "hdr.avif",
        "10-bit AVIF",
        deep_avif,
        None,
    ),
    Awkward(
        "colour_16.sgi",
        "16-bit colour SGI",
        saved(COLORS, "SGI", bpc=2),
        None,
    ),
    Awkward(
        "icons.ico",
        "ICO with icons of several sizes",
        saved(COLORS, "ICO", sizes=[(32, 24), (64, 48)]),
        None,
    ),
    Awkward(
        "text.tga",
        "text named .tga",
        data(b"no image" * 50),
        None,
    ),
    Awkward(
        "12_bit.jpg",
        "12-bit JPEG",
        replaced(
            encoded(Image.fromarray(COLORS), "JPEG"),
            b"\xff\xc0\x00\x11\x08",
            b"\xff\xc0\x00\x11\x0c",
        ),
        None,
    ),
]
PAGES = [
    Awkward("stack.tif", "TIFF with three pages", frames("TIFF"), None),
    Awkward("animated.gif", "animated GIF", frames("GIF"), None),
    Awkward("animated.webp", "animated WebP", frames("WEBP", lossless=True), None),
    Awkward("animated.png", "animated PNG", frames("PNG"), None),
    Awkward("animated.avif", "animated AVIF", frames("AVIF"), None),
    Awkward(
        "volume.tif",
        "TIFF of a volume",
        tiff(
            np.stack([GREY] * 4),
            volumetric=True,
            tile=(2, 16, 16),
            photometric="minisblack",
        ),
        None,
    ),
    Awkward("imagej.tif", "stack of ImageJ in one page", imagej_stack, None),
    Awkward("thumbnail.tif", "TIFF with a thumbnail", with_thumbnail, RGB),
    Awkward("preview.jpg", "JPEG with a preview (MPO)", with_preview, RGB, LOSSY),
]
_PNG = encoded(Image.fromarray(COLORS), "PNG")
_JPEG = encoded(Image.fromarray(COLORS), "JPEG", quality=95, subsampling=0)
DAMAGED = [
    Awkward("truncated.png", "half of a PNG", data(_PNG[: len(_PNG) // 2]), None),
    Awkward("truncated.jpg", "half of a JPEG", data(_JPEG[: len(_JPEG) // 2]), None),
    Awkward("empty.png", "file without a byte", data(b""), None),
    Awkward("text.png", "text named .png", data(b"no image\n"), None),
    Awkward("jpeg.png", "JPEG named .png", data(_JPEG), RGB, LOSSY),
    Awkward("no_suffix", "PNG without a suffix", data(_PNG), RGB),
    Awkward("drawing.png", "EPS named .png", saved(COLORS, "EPS"), None),
    Awkward("photo.heic", "HEIC", data(b"\0\0\0\x18ftypheic" + bytes(64)), None),
    Awkward(
        "._photo.png",
        "metadata file that macOS writes next to a photo",
        data(b"\0\x05\x16\x07" + bytes(64)),
        None,
    ),
    Awkward("huge.png", "PNG whose header states 3.6 billion pixels", huge_png, None),
    Awkward(
        "thin.png",
        "PNG of 1 x 20000 pixels",
        saved(np.zeros((1, 20_000), np.uint8), "PNG"),
        np.zeros((1, 20_000, 3)),
    ),
    Awkward(
        "one_pixel.png", "PNG of one pixel", saved(COLORS[:1, :1], "PNG"), RGB[:1, :1]
    ),
]
NAMES = [
    Awkward("two words.png", "space in the name", data(_PNG), RGB),
    Awkward("line\nbreak.png", "line break in the name", data(_PNG), RGB),
    Awkward("gru\u0308n.png", "decomposed umlaut in the name", data(_PNG), RGB),
    Awkward(os.fsdecode(b"caf\xe9.png"), "name that is not UTF-8", data(_PNG), RGB),
    Awkward("l" * 240 + ".png", "name of 244 characters", data(_PNG), RGB),
    Awkward("link.png", "link to an image", link_to("plain.png"), RGB),
    Awkward("broken_link.png", "link to nothing", link_to("nothing.png"), None),
    Awkward("loop.png", "link to itself", loop, None),
    Awkward(
        "pipe.png",
        "named pipe",
        os.mkfifo if hasattr(os, "mkfifo") else data(b""),
        None,
    ),
    Awkward("folder.png", "folder named .png", lambda path: path.mkdir(), None),
]
# Older versions of Pillow have no AVIF.
FILES = [
    one
    for one in [*PLAIN, *DEEP, *COLOR_MODELS, *PAGES, *DAMAGED, *NAMES]
    if not one.name.endswith("avif") or "AVIF" in accepted_formats()
]


def write_12_bits(path: Path) -> None:
    """Write a TIFF whose pixels are packed, two in three bytes."""
    values = (GREY_16 >> 4).reshape(-1, 2)
    first, second = values[:, 0], values[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    pixels = packed.astype(np.uint8).tobytes()
    height, width = GREY.shape
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1)]
    tags += [(273, 8 + 2 + 12 * 8 + 4), (277, 1), (279, len(pixels))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    path.write_bytes(header + directory + bytes(4) + pixels)


def write_all(folder: Path) -> dict[str, Awkward]:
    """Write all files; return them by path."""
    folder.mkdir(exist_ok=True)
    written = {}
    for one in FILES:
        path = folder / one.name
        one.write(path)
        written[str(path)] = one
    return written


# The table ----------------------------------------------------------------------------


def find_error(path: Path) -> str:
    """Return the message when a file is read, or nothing."""
    try:
        check_images([path])[0]
    except (OSError, ValueError) as error:
        reason = str(error).replace(str(path), path.name)
        start = f"Could not read image 0 ({path.name}): "
        return reason.removeprefix(start).removeprefix("image 0 ").rstrip(".")
    return ""


def make_tables() -> str:
    """Return Markdown tables of the files that are read, and of those that are not."""
    with tempfile.TemporaryDirectory() as folder:
        errors = {
            one: find_error(Path(path))
            for path, one in write_all(Path(folder) / "files").items()
        }
    read = [f"{one.what} (`{short(one.name)}`)" for one in FILES if not errors[one]]
    rows = [
        f"| {one.what} (`{short(one.name)}`) | {errors[one]} |"
        for one in FILES
        if errors[one]
    ]
    listed = "\n".join(f"- {line}" for line in read)
    table = "\n".join(["| not read | message |", "|---|---|", *rows])
    return f"**Read in full:**\n\n{listed}\n\n**Errors:**\n\n{table}"


def short(name: str) -> str:
    """Return a name without special characters, shortened if it is long."""
    name = ascii(name)[1:-1]
    return name if len(name) < 40 else f"{name[:8]}...{name[-8:]}"


def with_table(page: str, table: str) -> str:
    """Return a page with the table in the place of the earlier one."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), make_tables()), "utf-8")
