"""What pictures hold, and what they decode to: depth, turning, transparency, shape and damage."""

import io
import itertools
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from guidedflow.data.images import cover, decode_file


def encoded(image, form, **options):
    """The bytes of a picture in a format."""
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, form, **options)
    return file.getvalue()


def png(values, colour_type, transparent=b""):
    """A 16-bit PNG of (h, w, channels) numbers, written by the standard's own layout."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent:
        parts.insert(1, (b"tRNS", transparent))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


RAMP = (np.arange(256, dtype=np.uint16) * 257)[None].repeat(2, 0)  # 0 to 65535
GREY = np.arange(256)[None].repeat(2, 0)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_ramp_is_a_ramp_of_8_bits(form, channels):
    out = decode_file(encoded(RAMP, form), (2, 256), channels)
    assert np.array_equal(out, GREY[..., None].repeat(channels, -1))


def test_16_bits_of_colour_and_of_grey_with_alpha_are_ramps_too():
    colour = np.stack([RAMP, RAMP[:, ::-1], 0 * RAMP], -1)
    expected = np.stack([GREY, GREY[:, ::-1], 0 * GREY], -1)
    assert np.array_equal(decode_file(png(colour, 2), (2, 256), 3), expected)
    opaque = np.stack([RAMP, np.full_like(RAMP, 65535)], -1)
    assert np.array_equal(decode_file(png(opaque, 4), (2, 256), 1)[..., 0], GREY)


def test_floats_from_0_to_1_are_black_to_white_and_others_are_refused():
    ramp = (GREY / 255).astype(np.float32)
    assert np.array_equal(decode_file(encoded(ramp, "TIFF"), (2, 256), 1)[..., 0], GREY)
    for wrong in (ramp * 255, ramp - 1, np.full_like(ramp, np.nan)):
        with pytest.raises(ValueError, match=r"floating-point pixels lie from .* expected 0 to 1"):
            decode_file(encoded(wrong, "TIFF"), (2, 256), 1)


def test_32_bit_integers_have_no_known_white_and_are_refused():
    with pytest.raises(ValueError, match="pixels of mode I in TIFF are not supported"):
        decode_file(encoded(RAMP.astype(np.int32), "TIFF"), (2, 256), 1)


# How a picture that stands upright is stored for each orientation (TIFF 6.0, tag 274): where the
# stored first row and first column are seen.
STORED = {
    1: lambda image: image,  # top, left
    2: lambda image: image[:, ::-1],  # top, right
    3: lambda image: image[::-1, ::-1],  # bottom, right
    4: lambda image: image[::-1],  # bottom, left
    5: lambda image: image.swapaxes(0, 1),  # left, top
    6: lambda image: image[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda image: image[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(form, orientation):
    corners = np.zeros((16, 32, 3), np.uint8)
    corners[:8, :16, 0] = corners[:8, 16:, 1] = corners[8:, :16, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    stored = encoded(STORED[orientation](corners), form, exif=exif, **options.get(form, {}))
    # JPEG is not exact; at the smaller size the filter reaches into the neighbouring quarters.
    for size, tolerance in (((16, 32), 8), ((2, 4), 64)):
        middles = decode_file(stored, size, 3)[size[0] // 4 :: size[0] // 2]
        seen = middles[:, size[1] // 4 :: size[1] // 2].astype(int)
        assert np.all(np.abs(seen - corners[4::8, 8::16]) <= tolerance), size


def test_damaged_exif_leaves_the_picture_as_it_is():
    whole = encoded(GREY.astype(np.uint8), "PNG", exif=b"Exif\0\0no such thing")
    assert np.array_equal(decode_file(whole, (2, 256), 1)[..., 0], GREY)


def _palette():
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    return encoded(picture, "PNG", transparency=0)


@pytest.mark.parametrize(
    "stored",
    [
        _palette(),
        encoded(np.array([[[200, 0, 0, 0], [0, 0, 255, 255]]], np.uint8), "PNG"),
        encoded(np.array([[[200, 0, 0, 0], [0, 0, 255, 255]]], np.uint8), "WEBP", lossless=True),
        encoded(np.array([[[200, 0, 0], [0, 0, 255]]], np.uint8), "PNG", transparency=(200, 0, 0)),
        png(np.array([[[51400, 0, 0], [0, 0, 65535]]]), 2, struct.pack(">HHH", 51400, 0, 0)),
    ],
    ids=["palette", "rgba", "webp", "colour", "16 bits"],
)
def test_what_is_transparent_is_white(stored):
    assert decode_file(stored, (1, 2), 3).tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_transparent_grey_is_white_and_half_transparent_black_is_grey():
    grey = png(np.array([[[257], [65535 // 2]]]), 0, struct.pack(">H", 257))
    assert decode_file(grey, (1, 2), 1)[..., 0].tolist() == [[255, 127]]
    half = encoded(np.array([[[0, 128]]], np.uint8), "PNG")
    assert decode_file(half, (1, 1), 1).item() == 127


def test_cmyk_and_grey_become_colours():
    red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.all(np.abs(decode_file(red, (8, 8), 3).astype(int) - [255, 0, 0]) <= 3)
    grey = decode_file(encoded(np.full((8, 8), 77, np.uint8), "PNG"), (8, 8), 3)
    assert np.all(grey == 77)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_or_pages_the_first_is_taken(form):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    options = {"lossless": True} if form == "WEBP" else {}
    stored = encoded(first, form, save_all=True, append_images=[second], **options)
    assert np.all(decode_file(stored, (4, 4), 3) == [255, 0, 0])


@pytest.mark.parametrize("shape", [(40, 23), (7, 90), (90, 7), (16, 16), (3, 5)])
@pytest.mark.parametrize("size", [(16, 16), (9, 20), (5, 3)])
def test_cutting_before_scaling_is_cutting_after_it(shape, size):
    # Far from 0 and 255: what is clipped between the passes of the filter depends on their order.
    image = np.random.default_rng(0).integers(90, 160, (*shape, 3), np.uint8)
    scale = max(size[0] / shape[0], size[1] / shape[1])
    whole = tuple(max(s, round(n * scale)) for s, n in zip(size, shape, strict=True))
    scaled = Image.fromarray(image).resize(whole[::-1], Image.Resampling.BICUBIC)
    top, left = ((w - s) // 2 for w, s in zip(whole, size, strict=True))
    expected = np.asarray(scaled)[top : top + size[0], left : left + size[1]].astype(int)
    # Each of the two passes rounds to whole numbers.
    assert np.all(np.abs(cover(Image.fromarray(image), size, 3) - expected) <= 2)


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (1, 1)])
def test_memory_is_bounded_by_the_picture_and_the_crop(shape):
    """Scaled whole, 20,000 × 1 to 64 × 64 would be 1,280,000 × 64 pixels."""
    stored = encoded(np.full(shape, 9, np.uint8), "PNG")
    resized = []
    resize = Image.Image.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Image.Image,
            "resize",
            lambda self, size, *rest: resized.append(size) or resize(self, size, *rest),
        )
        tracemalloc.start()
        out = decode_file(stored, (64, 64), 3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert np.all(out == 9)
    assert resized == [(64, 64)]
    assert peak < 2**20


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_damaged_bytes_are_refused_or_decoded_and_never_crash(form):
    rng = np.random.default_rng(1)
    whole = encoded(rng.integers(0, 256, (12, 12, 3), np.uint8), form)
    refused = 0
    for length in range(0, len(whole) - 8, max(1, len(whole) // 40)):
        try:
            decode_file(whole[:length], (4, 4), 3)
        except (OSError, SyntaxError, ValueError, EOFError):
            refused += 1
    # A GIF that was cut within its last block gives the rows that are there.
    assert refused >= 10


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        decode_file(encoded(np.zeros((20, 20), np.uint8), "PNG"), (4, 4), 3)


def test_a_format_that_would_start_a_program_is_refused():
    for stored in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"", b"hello" * 20):
        with pytest.raises(OSError, match="cannot identify"):
            decode_file(stored, (4, 4), 3)


def test_every_pair_of_shape_and_size_gives_the_size():
    for shape, size in itertools.product([(1, 1), (2, 300), (5, 4)], [(1, 1), (3, 8)]):
        assert decode_file(encoded(np.zeros(shape, np.uint8), "PNG"), size, 3).shape == (*size, 3)
