"""PNG and TIFF files of any bit depth, written byte by byte: an encoder that shares nothing with the reader."""

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, COLOUR, PALETTE, GREY_ALPHA = 0, 2, 3, 4


def _packed(values: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Return the rows of ``values`` (H, W, channels) with ``bits`` a value, each row ending at a whole byte."""
    rows = []
    for row in values.reshape(len(values), -1):
        if bits in (8, 16):
            rows.append(row.astype(f"{order}u{bits // 8}").tobytes())
        else:
            text = "".join(format(int(value), f"0{bits}b") for value in row)
            text += "0" * (-len(text) % 8)
            rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


def chunk(name: bytes, content: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    path: Path,
    values: np.ndarray,
    bits: int,
    kind: int = GREY,
    palette: np.ndarray | None = None,
    *,
    before: bytes = b"",
    after: bytes = b"",
) -> Path:
    """Write ``values`` (H, W) or (H, W, channels); ``before`` and ``after`` are chunks around the pixels."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row for row in _packed(values, bits))
    content = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    )
    if palette is not None:
        content += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    content += before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    path.write_bytes(content)
    return path


def tiff(
    path: Path,
    values: np.ndarray,
    bits: int,
    *,
    order: str = "<",
    white_is_zero: bool = False,
    sample_format: int = 1,
    orientation: int = 1,
) -> Path:
    """Write ``values`` (H, W) or (H, W, 3), uncompressed, in one strip; ``order`` "<" is Intel's.

    ``sample_format`` is 1 for unsigned, 2 for signed and 3 for floating-point values, of 32 bits with a NumPy dtype.
    """
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    if bits == 32 or sample_format != 1:
        pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    else:
        pixels = b"".join(_packed(values, bits, order))
    photometric = 2 if channels == 3 else 0 if white_is_zero else 1
    count = 11
    data = 8 + 2 + 12 * count + 4
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, data if channels == 3 else bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, data + 2 * channels),
        (274, 3, 1, orientation),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(pixels)),
        (339, 3, 1, sample_format),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    directory = struct.pack(f"{order}H", count)
    for tag, kind, number, value in tags:
        short = kind == 3 and number == 1
        packed = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, number) + packed
    directory += struct.pack(f"{order}I", 0)
    path.write_bytes(head + directory + struct.pack(f"{order}{channels}H", *[bits] * channels) + pixels)
    return path
