"""Normalising photos: clean ones keep their bytes, odd ones become upright RGB, the rest are refused with a reason."""

import io
import pickle
import struct
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from serving import photo
from serving.photo import Photo, PhotoError, normalise

ORIENTATION = 0x0112
# What a camera does to the upright picture, by the EXIF orientation that tells how to undo it.
CAMERA = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
KINDS = set(PhotoError.KINDS) - {"unreadable"}
MODES = ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "I;16"]


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    """A smooth picture without symmetry."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x * y) / 255], axis=-1).astype(np.uint8))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} | options if kind == "JPEG" else options))
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(image.transpose(CAMERA[orientation]), kind, exif=exif.tobytes())


def decoded(result: Photo) -> Image.Image:
    image = Image.open(io.BytesIO(result.data))
    assert image.format in ("JPEG", "PNG")
    assert image.mode == "RGB"
    assert image.getexif().get(ORIENTATION) not in CAMERA
    assert image.size == result.luma.size == (result.width, result.height)
    return image


def pixels(result: Photo) -> np.ndarray:
    return np.asarray(decoded(result)).astype(int)


def outcome(data: bytes) -> Photo | PhotoError:
    try:
        return normalise(data)
    except PhotoError as error:
        return error


def difference(result: Photo, wanted: Image.Image) -> float:
    return np.abs(pixels(result) - np.asarray(wanted.convert("RGB"))).mean()


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF as bytes, from (tag, type, count, value): Pillow would not write a wrong one."""
    packed = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + packed + bytes(4)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    pixel: bytes, depth: int = 8, colour: int = 2, *extra: bytes, rows=(64,) * 64, lost: int = 0, end: bytes = bytes(3)
) -> bytes:
    """64 x 64 equal pixels, in kinds of PNG that Pillow does not write."""
    header = struct.pack(">IIBB", 64, 64, depth, colour) + end
    content = zlib.compress(b"".join(b"\0" + pixel * width for width in rows))
    content = content[: len(content) - lost]
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", content), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


FILES = {
    "jpeg": encode(gradient(), "JPEG"),
    "progressive": encode(gradient(), "JPEG", progressive=True, subsampling=0),
    "restarts": encode(gradient(), "JPEG", restart_marker_blocks=3),
    "png": encode(gradient(), "PNG"),
    "stored png": encode(gradient(), "PNG", compress_level=0),
    "palette png": encode(gradient().quantize(), "PNG"),
    "webp": encode(gradient(), "WEBP", quality=95),
    "lossless webp": encode(gradient(), "WEBP", lossless=True),
    "gif": encode(gradient(), "GIF"),
    "bmp": encode(gradient(), "BMP"),
    "heic": encode(gradient(), "HEIF", quality=95),
    "turned heic": turned(gradient(), 6, "HEIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_known_by_its_content_and_gives_its_picture(name):
    assert difference(normalise(FILES[name]), gradient()) < (5 if name in ("gif", "palette png") else 2)


@pytest.mark.parametrize(("kind", "bound"), [("GIF", 5), ("WEBP", 3), ("PNG", 0.1)])
def test_of_an_animation_the_first_frame_is_taken(kind, bound):
    later = [Image.new("RGB", (96, 64), colour) for colour in ("red", "blue")]
    data = encode(gradient(), kind, save_all=True, append_images=later)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert difference(normalise(data), gradient()) < bound


@pytest.mark.parametrize(
    "data",
    [
        encode(gradient(), "JPEG", quality=75),
        encode(gradient(), "JPEG", quality=30, progressive=True),
        encode(gradient(), "JPEG", restart_marker_blocks=1),
        encode(gradient(), "JPEG", keep_rgb=True),
        encode(gradient(), "JPEG", subsampling="4:2:2", comment=b"a cat", dpi=(300, 300), icc_profile=bytes(999)),
        encode(gradient(), "JPEG", exif=exif_block((ORIENTATION, 3, 1, b"\0\1\0\0"))),
        encode(gradient(), "JPEG", exif=exif_block((ORIENTATION, 3, 1, b"\0\0\0\0"))),
        encode(gradient(), "JPEG", exif=exif_block((ORIENTATION, 3, 1, b"\0\x09\0\0"))),
        encode(gradient(), "JPEG") + b"a film that a phone appended",
        encode(gradient(), "PNG"),
        encode(gradient(), "PNG", dpi=(300, 300), icc_profile=bytes(999)),
        encode(gradient(600, 400), "PNG", compress_level=0),
        encode(gradient(), "PNG") + b"\0",
        encode(gradient(photo.MAX_SIDE, photo.MIN_SIDE), "PNG"),
        encode(gradient(photo.MIN_SIDE, photo.MAX_SIDE), "JPEG"),
    ],
    ids=[
        *[
            "jpeg",
            "progressive",
            "restarts",
            "rgb jpeg",
            "metadata",
            "upright",
            "turned by 0",
            "turned by 9",
            "trailer",
        ],
        *["png", "png metadata", "many png chunks", "png trailer", "widest", "highest"],
    ],
)
def test_a_clean_photo_keeps_its_bytes(data):
    result = normalise(data)
    assert result.data == data
    assert difference(result, Image.open(io.BytesIO(data))) == 0


@pytest.mark.parametrize("orientation", CAMERA)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_a_photo_that_the_camera_turned_becomes_its_upright_original(kind, orientation):
    result = normalise(turned(gradient(), orientation, kind))
    assert (result.width, result.height) == (96, 64)
    assert difference(result, gradient()) < 3


@pytest.mark.parametrize("orientation", CAMERA)
@pytest.mark.parametrize(("number", "form"), [(5, ">II"), (11, ">f"), (12, ">d")], ids=["rational", "float", "double"])
def test_an_orientation_that_is_a_fraction_turns_too(orientation, number, form):
    square = gradient(64, 64)
    value = struct.pack(form, *[orientation, 1][: len(form) - 1])
    entry = value if len(value) == 4 else struct.pack(">I", 26)
    exif = exif_block((ORIENTATION, number, 1, entry)) + value
    data = encode(square.transpose(CAMERA[orientation]), "JPEG", exif=exif)
    assert difference(normalise(data), square) < 3


@pytest.mark.parametrize("tag", [0x100, 0x11A], ids=["width", "resolution"])
def test_a_turned_photo_with_text_where_exif_wants_numbers_is_taken_or_refused_never_a_crash(tag):
    exif = exif_block((ORIENTATION, 3, 1, b"\0\6\0\0"), (tag, 2, 2, b"ab\0\0"))
    result = outcome(encode(gradient(), "JPEG", exif=exif))
    assert isinstance(result, PhotoError) or (result.width, result.height) == (64, 96)


@pytest.mark.parametrize("mode", MODES[1:])
def test_every_mode_becomes_rgb_with_the_same_picture(mode):
    image = in_mode(gradient(), mode)
    data = encode(image, "JPEG" if mode == "CMYK" else "PNG")
    assert Image.open(io.BytesIO(data)).mode == mode
    result = normalise(data)
    assert result.data != data
    wanted = gradient().convert("L") if mode == "I;16" else image
    assert difference(result, wanted) < (8 if mode == "1" else 3)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (png(b"\x12\x34\x56\x78\x9a\xbc", 16, 2), (0x12, 0x56, 0x9A)),
        (png(b"\x12\x34\x56\x78\x9a\xbc\xff\xff", 16, 6), (0x12, 0x56, 0x9A)),
        (png(b"\x12\x34\xff\xff", 16, 4), (0x12, 0x12, 0x12)),
        (png(b"\xab\xcd", 16, 0), (0xAB, 0xAB, 0xAB)),
        (encode(Image.new("I", (64, 64), 0xABCD), "PNG"), (0xAB, 0xAB, 0xAB)),
        (encode(Image.new("I;16", (64, 64), 0xABCD), "HEIF"), (0xAB, 0xAB, 0xAB)),
    ],
    ids=["rgb", "rgba", "grey with alpha", "grey", "from 32 bits", "heic"],
)
def test_of_16_bits_the_upper_8_are_the_picture(data, wanted):
    result = normalise(data)
    assert result.data != data
    assert difference(result, Image.new("RGB", (64, 64), wanted)) <= 1


def test_16_bit_grey_keeps_its_shades():
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (32, 1))
    data = encode(Image.fromarray(ramp), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    wanted = np.repeat((ramp // 256)[..., None], 3, axis=-1).astype(int)
    assert np.abs(pixels(normalise(data)) - wanted).max() <= 4


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "GIF"), ("RGBA", "WEBP"), ("RGBa", "HEIF")],
)
def test_what_is_transparent_becomes_white(mode, kind):
    image = Image.new("RGBA", (64, 64), (40, 40, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 32))
    image = image.quantize() if mode == "P" else image.convert(mode)
    result = pixels(normalise(encode(image, kind)))
    assert result[:28].min() > 250
    assert np.abs(result[36:] - 40).max() < 5


@pytest.mark.parametrize(
    ("mode", "colour"), [("1", 0), ("1", 255), ("L", 40), ("RGB", (40, 50, 60)), ("P", 3)], ids=str
)
def test_the_one_colour_that_a_png_calls_transparent_becomes_white(mode, colour):
    image = Image.new(mode, (64, 64), colour)
    if mode == "P":
        image.putpalette(bytes(range(30)))
    data = encode(image, "PNG", transparency=1 if colour == 255 else colour)
    assert pixels(normalise(data)).min() > 250
    assert pixels(normalise(encode(image, "PNG"))).min() < 250 or colour == 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "HEIF"])
def test_half_transparent_black_becomes_grey(kind):
    data = encode(Image.new("RGBA", (32, 32), (0, 0, 0, 128)), kind)
    assert np.abs(pixels(normalise(data)) - 127).max() < 3


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((400, 160), (200, 80)), ((160, 400), (80, 200)), ((201, 50), (200, 50)), ((200, 50), (200, 50))],
)
@pytest.mark.parametrize("mode", MODES)
def test_the_longer_side_is_bounded_and_the_shape_kept_in_every_mode(mode, size, wanted):
    data = encode(in_mode(gradient(*size), mode), "JPEG" if mode == "CMYK" else "PNG")
    result = normalise(data, max_side=200)
    assert (result.width, result.height) == wanted
    picture = gradient(*size).convert("L" if mode in ("L", "1", "LA", "I;16") else "RGB").convert("RGB")
    seen, meant = (image.resize((8, 8), Image.Resampling.BOX) for image in (decoded(result), picture))
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(meant)).mean() < (8 if mode in "1P" else 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "HEIF"])
def test_a_large_photo_is_reduced_in_every_format(kind):
    result = normalise(encode(gradient(2100, 1400), kind))
    assert (result.width, result.height) == (photo.MAX_SIDE, 683)
    assert difference(result, gradient(photo.MAX_SIDE, 683)) < 4


def test_the_side_is_bounded_after_the_photo_is_turned():
    result = normalise(turned(gradient(100, 400), 6), max_side=200)
    assert (result.width, result.height) == (50, 200)


def test_normalising_twice_changes_nothing_more():
    once = normalise(turned(gradient(400, 300), 8), max_side=200)
    assert normalise(once.data, max_side=200) == once


@pytest.mark.parametrize(
    "other",
    [
        encode(gradient(), "PNG", compress_level=0),
        encode(gradient(), "PNG", optimize=True),
        encode(gradient(), "PNG", dpi=(300, 300)),
    ],
    ids=["uncompressed", "optimised", "metadata"],
)
def test_the_digest_is_that_of_the_picture_and_not_of_the_file(other):
    data = encode(gradient(), "PNG")
    assert other != data
    assert normalise(other).digest == normalise(data).digest


@pytest.mark.parametrize(
    "data",
    [
        *FILES.values(),
        encode(gradient(), "JPEG", keep_rgb=True),
        turned(gradient(), 6),
        encode(gradient(2100, 1400), "PNG"),
    ],
    ids=[*FILES, "rgb jpeg", "turned jpeg", "large png"],
)
def test_the_luma_is_the_brightness_of_the_picture(data):
    result = normalise(data)
    wanted = np.asarray(decoded(result).convert("L")).astype(int)
    assert result.luma.mode == "L"
    assert np.abs(np.asarray(result.luma) - wanted).mean() < (1 if result.data.startswith(b"\xff\xd8") else 0.001)


def test_the_digest_is_that_of_the_picture_and_not_of_what_a_jpeg_says_about_it():
    data = encode(gradient(), "JPEG", quality=90)
    told = encode(gradient(), "JPEG", quality=90, comment=b"my cat", dpi=(300, 300))
    assert told != data
    assert normalise(told).digest == normalise(data + b"a film").digest == normalise(data).digest


def test_the_same_pixels_in_formats_that_lose_nothing_have_the_same_digest():
    with_alpha = encode(gradient().convert("RGBA"), "PNG")
    assert len({normalise(data).digest for data in (FILES["bmp"], FILES["lossless webp"], with_alpha)}) == 1


def test_another_picture_has_another_digest():
    flat = Image.new("RGB", (64, 32), "grey")
    dotted = flat.copy()
    dotted.putpixel((5, 5), (140, 128, 128))
    pictures = [flat, dotted, flat.resize((32, 64)), gradient()]
    assert len({normalise(encode(picture, "PNG")).digest for picture in pictures}) == 4


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", "empty", "the file is empty"),
        (b"not a photo at all", "not_an_image", "not a JPEG, PNG, WebP, GIF, BMP or HEIC image"),
        (bytes(5000), "not_an_image", "not a JPEG"),
        (encode(gradient(), "TIFF"), "not_an_image", "not a JPEG"),
        (encode(gradient(), "PDF"), "not_an_image", "not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image", "not a JPEG"),
        (b" " + encode(gradient(), "JPEG"), "not_an_image", "not a JPEG"),
        (encode(gradient(), "PNG")[:20], "damaged", "damaged or cut off"),
        (b"\xff\xd8\xff\xe0", "damaged", "damaged or cut off"),
        (b"\xff\xd8\xff\xe0 then text", "damaged", "damaged or cut off"),
        (encode(gradient(31, 64), "PNG"), "too_small", "31 x 64 pixels; the shorter side needs at least 32"),
        (encode(gradient(64, 31), "GIF"), "too_small", "64 x 31 pixels; the shorter side needs at least 32"),
        (encode(gradient(1, 1), "BMP"), "too_small", "1 x 1 pixels"),
        (encode(gradient(2048, 40), "JPEG"), "too_small", "2048 x 40 pixels are too narrow; .* would have 20 "),
        (encode(gradient(33, 1200), "PNG"), "too_small", "33 x 1200 pixels are too narrow; .* would have 28 "),
        (turned(gradient(40, 2048), 6), "too_small", "2048 x 40 pixels are too narrow"),
    ],
    ids=[
        *["empty", "text", "zeros", "tiff", "pdf", "svg", "space before", "png header", "jpeg start", "jpeg then text"],
        *["too narrow", "too low", "one pixel", "low once reduced", "narrow once reduced", "turned and low"],
    ],
)
def test_what_is_no_photo_is_refused_with_the_reason(data, kind, reason):
    with pytest.raises(PhotoError, match=reason) as caught:
        normalise(data)
    assert caught.value.kind == kind


def test_a_photo_that_is_just_large_enough_is_taken():
    assert normalise(encode(gradient(photo.MIN_SIDE, photo.MIN_SIDE), "GIF")).width == photo.MIN_SIDE
    assert normalise(encode(gradient(2048, 64), "PNG")).height == photo.MIN_SIDE


@pytest.mark.parametrize(
    "data", [*FILES.values(), encode(gradient(2100, 1400), "JPEG")], ids=[*FILES, "large jpeg with reduced decoding"]
)
def test_a_photo_that_is_cut_off_is_damaged(data):
    for end in np.linspace(60, len(data) - 25, 60).astype(int):
        with pytest.raises(PhotoError, match="damaged or cut off") as caught:
            normalise(data[:end])
        assert caught.value.kind == "damaged"


@pytest.mark.parametrize("name", FILES)
def test_a_photo_that_lost_only_what_follows_its_pixels_is_whole_or_damaged(name):
    whole = normalise(FILES[name])
    for lost in range(1, 25):
        result = outcome(FILES[name][:-lost])
        if isinstance(result, PhotoError):
            assert result.kind == "damaged"
        else:
            assert difference(result, decoded(whole)) < 2


@pytest.mark.parametrize("size", [(10_000, 10_000), (15_000, 12_000)], ids=["over our cap", "over Pillow's limit"])
def test_a_small_file_with_too_many_pixels_is_refused_before_it_is_decoded(size, monkeypatch):
    data = encode(Image.new("1", size), "PNG")
    assert len(data) < 200_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(PhotoError, match="pixels") as caught:
            normalise(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.kind == "too_large"
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    "data",
    [
        patched(FILES["jpeg"], FILES["jpeg"].index(b"\xff\xc0") + 5, struct.pack(">HH", 9000, 9000)),
        patched(FILES["lossless webp"], 21, struct.pack("<I", 8999 << 14 | 8999)),
        patched(FILES["gif"], 6, struct.pack("<HH", 9000, 9000)),
        patched(FILES["bmp"], 18, struct.pack("<ii", 9000, 9000)),
        patched(FILES["heic"], FILES["heic"].index(b"ispe") + 8, struct.pack(">II", 9000, 9000)),
    ],
    ids=["jpeg", "webp", "gif", "bmp", "heic"],
)
def test_a_header_that_promises_too_many_pixels_is_enough_to_refuse(data, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PhotoError, match="9000 x 9000 pixels are more than the limit of 64,000,000") as caught:
        normalise(data)
    assert caught.value.kind == "too_large"


def test_as_many_pixels_as_allowed_are_taken():
    assert normalise(encode(gradient(96, 64), "PNG"), max_pixels=96 * 64).width == 96
    with pytest.raises(PhotoError, match=f"97 x 64 pixels are more than the limit of {96 * 64:,}"):
        normalise(encode(gradient(97, 64), "PNG"), max_pixels=96 * 64)


@pytest.mark.parametrize("kind", sorted(FILES))
def test_limits_of_pixels_change_no_photo_that_is_within_them(kind):
    data, free = FILES[kind], normalise(FILES[kind])
    width, height = Image.open(io.BytesIO(data)).size
    for limits in ({"max_other_pixels": width * height}, {"max_pixels": width * height}):
        limited = normalise(data, **limits)
        assert (limited.data, limited.digest) == (free.data, free.digest)


def test_cameras_formats_have_a_limit_of_their_own():
    for kind, camera in (
        ("JPEG", True),
        ("HEIF", True),
        ("PNG", False),
        ("WEBP", False),
        ("GIF", False),
        ("BMP", False),
    ):
        data = encode(gradient(97, 64), kind)
        if camera:
            assert normalise(data, max_pixels=97 * 64, max_other_pixels=96 * 64).width == 97
        else:
            with pytest.raises(PhotoError, match=f"more than the limit of {96 * 64:,}"):
                normalise(data, max_pixels=97 * 64, max_other_pixels=96 * 64)


def test_large_photos_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(photo, "LARGE_PIXELS", 96 * 64)
    small, large = encode(gradient(96, 64), "PNG"), encode(gradient(97, 64), "PNG")
    waiting = threading.Thread(target=normalise, args=(large,), daemon=True)
    with photo._large_photo_lock:
        waiting.start()
        assert normalise(small).width == 96  # does not wait
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_rows_that_a_png_has_too_many_take_no_memory():
    data = png(b"\x80\x80\x80", rows=(64,) * 200_000)
    tracemalloc.start()
    try:
        assert normalise(data).height == 64
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_metadata_whose_entries_all_claim_the_whole_of_it_take_no_memory(kind):
    length = 60_000
    entries = [(tag, 7, length - 100, struct.pack(">I", 8)) for tag in range(0x9000, 0x9000 + 1000)]
    exif = exif_block((ORIENTATION, 3, 1, struct.pack(">HH", 6, 0)), *entries).ljust(length)
    data = encode(gradient(), kind, exif=exif)
    tracemalloc.start()
    try:
        result = normalise(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.width < result.height or kind == "HEIF"  # it was turned; Pillow's HEIF plugin writes 1 there
    assert peak < 10 * length


def in_pieces(kind: str, number: int) -> bytes:
    """A photo with so many comments, or so many scans, that say nothing."""
    data = encode(gradient(), "PNG" if kind == "PNG" else kind.split()[0], progressive=kind.endswith("scans"))
    match kind:
        case "GIF":
            at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
            return data[:at] + b"\x21\xfe" + (b"\xff" + bytes(255)) * number + b"\0" + data[at:]
        case "PNG":
            return data[:33] + chunk(b"abCd", b"") * number + data[33:]
        case "JPEG comments":
            return data[:2] + b"\xff\xfe\0\2" * number + data[2:]
        case "JPEG comments between scans":
            at = data.rindex(b"\xff\xda")
            return data[:at] + b"\xff\xfe\0\2" * number + data[at:]
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * number + data[-2:]


PIECES = ["GIF", "PNG", "JPEG comments", "JPEG scans"]


@pytest.mark.parametrize("kind", PIECES)
def test_a_photo_in_a_few_pieces_too_many_is_taken(kind):
    assert difference(normalise(in_pieces(kind, 50)), gradient()) < 5


# Each would keep a processor busy for minutes; what is refused at once says so before it has looked at all.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", PIECES)
def test_a_photo_in_millions_of_pieces_is_refused(kind):
    data = in_pieces(kind, photo.MAX_BYTES // 300)
    with pytest.raises(PhotoError, match=r"too many segments|more than 100 scans") as raised:
        normalise(data)
    assert raised.value.kind == "damaged"


@pytest.mark.timeout(60)
def test_a_jpeg_of_very_many_segments_is_encoded_anew():
    data = in_pieces("JPEG comments between scans", photo.MAX_BYTES // 5)
    assert len(normalise(data).data) < 10_000


def test_as_many_bytes_as_allowed_are_taken():
    largest = FILES["jpeg"].ljust(photo.MAX_BYTES, b"\0")
    assert normalise(largest).width == 96
    with pytest.raises(PhotoError, match="larger than 64 MB") as caught:
        normalise(largest + b"\0")
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_error_survives_the_way_between_processes(kind):
    error = pickle.loads(pickle.dumps(PhotoError(kind, "a reason")))
    assert (type(error), error.kind, str(error)) == (PhotoError, kind, "a reason")


def test_a_warning_of_pillow_is_not_shown(recwarn):
    normalise(encode(gradient().quantize(), "PNG", transparency=bytes([0, 128, 255])))
    normalise(encode(gradient(), "JPEG", exif=exif_block((ORIENTATION, 3, 9, b"\0\0\xff\xff"))))
    assert not recwarn


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "drop", "end", "repeat", "move", "mix"]),
        st.one_of(st.integers(0, 400), st.integers(0, 2**15), st.integers(-40, -1)),
        st.sampled_from([1, 2, 4, 30, 300]),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, other: bytes, edits: list[tuple[str, int, int, int]]) -> bytes:
    for edit, place, length, value in edits:
        at = place % max(len(data), 1)
        before, piece, after = data[:at], data[at : at + length], data[at + length :]
        data = {
            "flip": before + bytes(byte ^ value for byte in piece) + after,
            "drop": before + after,
            "end": before,
            "repeat": before + piece * 3 + after,
            "move": before + after[:value] + piece + after[value:],
            "mix": before + other[at:],
        }[edit]
    return data


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(other=st.sampled_from(sorted(FILES)), edits=edits)
def test_any_damaged_file_gives_a_sound_photo_or_a_photo_error(name, other, edits):
    result = outcome(mutated(FILES[name], FILES[other], edits))
    if isinstance(result, PhotoError):
        assert result.kind in KINDS
        assert str(result).strip()
    else:
        assert pixels(result).shape == (result.height, result.width, 3)
        assert min(result.width, result.height) >= photo.MIN_SIDE
        assert max(result.width, result.height) <= photo.MAX_SIDE


def difference_in_tensorflow(result: Photo) -> float:
    """Fails unless TensorFlow decodes the photo, as the model does, to the same size."""
    seen = tf.io.decode_image(result.data, channels=3, expand_animations=False).numpy()
    assert seen.shape == (result.height, result.width, 3)
    if result.data.startswith(b"\xff\xd8"):
        # The model's faster transform exaggerates values that only damage can give.
        seen = tf.io.decode_jpeg(result.data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    return np.abs(seen - pixels(result)).mean()


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(other=st.sampled_from(sorted(FILES)), edits=edits)
def test_tensorflow_sees_the_same_picture_in_whatever_is_taken(name, other, edits):
    result = outcome(mutated(FILES[name], FILES[other], edits))
    assert isinstance(result, PhotoError) or difference_in_tensorflow(result) < 3


@pytest.mark.parametrize("name", FILES)
def test_the_models_own_decoding_of_a_photo_is_nearly_that_of_pillow(name):
    result = normalise(FILES[name])
    seen = tf.io.decode_image(result.data, channels=3, expand_animations=False).numpy()
    assert difference(result, Image.fromarray(seen)) < 2


GREY = b"\x80\x80\x80"


@pytest.mark.parametrize(
    "data",
    [
        png(GREY)[:-12],
        patched(png(GREY), -16, bytes(4)),
        png(GREY, 8, 2, chunk(b"ABCD", b"critical and unknown")),
        png(GREY, 8, 2, chunk(b"a1CD", b"no letter")),
        png(GREY, 8, 2, chunk(b"PLTE", bytes(3)), chunk(b"PLTE", bytes(3))),
        png(GREY, end=b"\4\0\0"),
        png(GREY, rows=(64,) * 60),
        png(GREY, lost=4),
        FILES["jpeg"][:-2] + bytes(40),
        FILES["jpeg"][:-2] + b"\xff\xe1\x99\x99\xff\xd9",
    ],
    ids=[
        *[
            "png without end",
            "wrong checksum",
            "unknown chunk",
            "chunk name",
            "two palettes",
            "compression",
            "few rows",
        ],
        *["rows without checksum", "jpeg without end", "jpeg segment beyond the end"],
    ],
)
def test_what_pillow_takes_and_tensorflow_refuses_is_encoded_anew(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_image(data)
    assert difference_in_tensorflow(normalise(data)) < 1


@pytest.mark.parametrize(
    "data",
    [
        png(GREY, rows=(64,) * 65),
        png(GREY, 8, 2, chunk(b"PLTE", bytes(3))),
        png(GREY, rows=(8,) * 16 + (16,) * 24 + (32,) * 48 + (64,) * 32, end=b"\0\0\1"),
        FILES["jpeg"][:2] + b"\xff\xff" + FILES["jpeg"][2:],
        FILES["jpeg"].replace(b"\xff\xda", b"text\xff\xda", 1),
    ],
    ids=["png with a row too many", "suggested palette", "interlaced", "padded jpeg", "text in a jpeg"],
)
def test_what_is_odd_but_decodes_gives_its_picture(data):
    assert difference(normalise(data), Image.open(io.BytesIO(data))) < 1
