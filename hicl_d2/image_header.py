"""What the header of an image file says that Pillow's mode does not: bits, orientation, lossy compression."""

import os
from pathlib import Path

from PIL import Image

EXIF_ORIENTATION = 0x0112
# How an image with that orientation is brought upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# From the upright image back to the stored one: all but the two rotations are their own inverse.
STORED = {**UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

# The orientations from here on swap height and width.
QUARTER_TURN = 5

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow's modes that have a meaning as RGB of 8 bits.
IMAGE_MODES = (
    *["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"],
    *SIXTEEN_BITS,
)
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0
# Chunks of a PNG that can hold an orientation.
PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def is_16_bits(mode: str, file_format: str) -> bool:
    """Return whether grey values have 16 bits; older releases of Pillow read such a PNG in the mode "I"."""
    return mode in SIXTEEN_BITS or (mode == "I" and file_format == "PNG")


def grey_bits(image: Image.Image) -> int:
    """Return how many bits grey values of a file that is not decoded yet have, where Pillow's mode has more."""
    if image.format == "TIFF":
        bits = tiff_tag(image, TIFF_BITS, 0)
        return bits if (image.mode, bits) in (("L", 2), ("L", 4), ("I;16", 12)) else 0
    if image.mode != "L" or image.format != "PNG" or not image.tile:  # type: ignore[attr-defined]
        return 0
    return {"L;2": 2, "L;4": 4}.get(str(image.tile[0][3]), 0)  # type: ignore[attr-defined]


def tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the first value of a tag of a TIFF; ``default`` where it has none or the file is no TIFF."""
    value = image.tag_v2.get(tag, default) if image.format == "TIFF" else default  # type: ignore[attr-defined]
    return int(value[0] if isinstance(value, tuple) else value)


def is_white_zero(image: Image.Image) -> bool:
    """Return whether a TIFF counts grey from white down."""
    return tiff_tag(image, TIFF_PHOTOMETRIC, 1) == WHITE_IS_ZERO


def lossy_coding(path: str | Path, image: Image.Image) -> str:
    """Return the name of a compression that changes values, "" if the file has none."""
    if image.format in ("JPEG", "MPO", "AVIF"):
        return str(image.format)
    if image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
        return f"TIFF with {image.info['compression']}"
    return "WebP without its lossless mode" if image.format == "WEBP" and not _is_lossless_webp(path) else ""


def _is_lossless_webp(path: str | Path) -> bool:
    """Return whether the first picture of a WebP is coded without loss (a VP8L chunk before any VP8)."""
    with open(path, "rb") as stream:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            name, length = head[:4], int.from_bytes(head[4:], "little")
            if name in (b"VP8L", b"VP8 "):
                return name == b"VP8L"
            if name == b"ANMF":  # a frame: its chunks follow 16 bytes of its own
                stream.seek(16, os.SEEK_CUR)
            else:
                stream.seek(length + length % 2, os.SEEK_CUR)
    return False


def orientation_of(image: Image.Image, *, decode: bool) -> int:
    """Return the orientation by EXIF or XMP data, 1 without any; ``decode`` allows a PNG to be decoded for it."""
    try:
        exif = image.getexif() if decode else Image.Image.getexif(image)
        orientation = int(exif.get(EXIF_ORIENTATION, 1))
    except Exception:  # EXIF data can be broken in any way, and the image still be good
        return 1
    return orientation if orientation in UPRIGHT else 1


def has_late_metadata(path: str | Path) -> bool:
    """Return whether a PNG has, after its pixels, what can hold an orientation. Its pixels are passed over."""
    with open(path, "rb") as stream:
        stream.seek(8)
        seen_pixels = False
        while len(head := stream.read(8)) == 8:
            name = head[4:]
            seen_pixels |= name == b"IDAT"
            if seen_pixels and name in PNG_METADATA:
                return True
            stream.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False
