"""Normalize photos to the model's input format, with Pillow. Ingestion, gateway and client share this module."""

import contextlib
import hashlib
import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pillow_heif
from PIL import Image, ImageOps

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000
# Formats that cameras write. Pillow can decode a JPEG at a fraction of its size.
_CAMERA_FORMATS = ("JPEG", "HEIF")
# Decoding photos with more pixels takes up to hundreds of megabytes; see docs/serving.md for measurements.
LARGE_PIXELS = 24_000_000
MAX_SIDE = 1024
MIN_SIDE = 32
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "HEIF")
_JPEG_QUALITY = 95
# Pillow decodes a large JPEG at a fraction of its size that is at least this multiple of the resized photo. A greater
# multiple takes more time; the photos that ingestion stores, and their digests, must not change.
_INGESTION_GAP, _PREDICTION_GAP = 2.0, 1.0
# Image modes that can be resized; other modes are converted first.
_RESIZABLE = ("L", "LA", "RGB", "RGBA", "CMYK")
_SIGNATURES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|....ftyp(hei|hev|mif|msf)", re.DOTALL)
_JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xc2\xc4\xda\xdb\xdd\xe0-\xef\xfe])(..)", re.DOTALL)
_JPEG_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Decoders derive the color space from these application segments, which begin with these bytes.
_JPEG_COLOR_SEGMENTS = {b"\xe0": b"JFIF\0", b"\xee": b"Adobe"}
_JPEG_DIRECTORIES = re.compile(rb"(\xff[\xe1\xe2]..)(Exif\0\0|MPF\0)", re.DOTALL)
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
# A 64 MB photo in segments of 8 kB needs fewer reads. Pillow's time can grow with the square of the number of segments.
_MAX_READS = 30_000
# Every scan takes time proportional to the pixels, even if it has few bytes. Cameras and editors write about ten.
_MAX_SCANS = 100
_PNG_CHUNKS = re.compile(rb"IHDR([a-z][A-Za-z]{3})*(IDAT)+([a-z][A-Za-z]{3})*IEND")

pillow_heif.register_heif_opener()
# Held while a large photo is decoded, so that all threads of a process together need the memory for only one.
_large_photo_lock = threading.Lock()


class PhotoError(ValueError):
    """The bytes are not an accepted photo; the message is a reason that can be shown to users.

    Attributes:
        kind: One of KINDS.
    """

    KINDS = ("unreadable", "empty", "not_an_image", "damaged", "too_small", "too_large")

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self):
        return PhotoError, (self.kind, str(self))


@dataclass(frozen=True)
class Photo:
    """A normalized photo.

    Attributes:
        data: JPEG or PNG bytes of an upright 8-bit RGB image.
        width: Width in pixels.
        height: Height in pixels.
        digest: SHA-256, in hex, of the luma of each pixel and the size. It identifies the picture independently of the
            file's metadata.
        luma: Luma (brightness) of the image, in mode L.
    """

    data: bytes
    width: int
    height: int
    digest: str
    luma: Image.Image = field(repr=False, compare=False)


def normalize(
    data: bytes, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS, max_other_pixels: int | None = None
) -> Photo:
    """Convert a photo to upright, opaque RGB with at most `max_side` pixels on the longer side.

    A process decodes photos with more than LARGE_PIXELS pixels one at a time.

    The format is detected from the content: JPEG, PNG, WebP, GIF (first frame), BMP or HEIC. A JPEG or PNG that already
    meets all requirements keeps its bytes, which avoids the loss of a second encoding.

    Args:
        data: Content of the file.
        max_side: Maximum length of the longer side of the result, in pixels.
        max_pixels: Maximum number of pixels of the photo.
        max_other_pixels: Maximum number of pixels if the format is neither JPEG nor HEIC; None for `max_pixels`.

    Raises:
        PhotoError: If the file is empty, is not an image of these formats, is damaged or cut off, is too small, or is
            too large. The number of pixels is checked before any pixel is decoded.
    """
    with _opened(data, max_pixels, max_other_pixels) as image:
        normalized = _normalized(image, data, max_side, _INGESTION_GAP)
        if normalized is not data:
            image = Image.open(io.BytesIO(normalized))
        # A JPEG stores luma separately; decoding it without the color takes half the time.
        image.draft("L", image.size)
        luma = image.convert("L")
        digest = hashlib.sha256(luma.tobytes())
        digest.update(f"{luma.width}x{luma.height}".encode())
        return Photo(normalized, luma.width, luma.height, digest.hexdigest(), luma)


def normalize_for_prediction(data: bytes, max_pixels: int = MAX_PIXELS, max_other_pixels: int | None = None) -> bytes:
    """Convert a photo as `normalize` does, in less time; return only the JPEG or PNG bytes.

    The pixels of a photo that is reduced to MAX_SIDE differ slightly from those of `normalize`, by less than 1 of 255
    on average at the size of the model's input. All other results are equal.

    Args:
        data: See `normalize`.
        max_pixels: See `normalize`.
        max_other_pixels: See `normalize`.

    Raises:
        PhotoError: See `normalize`.
    """
    with _opened(data, max_pixels, max_other_pixels) as image:
        normalized = _normalized(image, data, MAX_SIDE, _PREDICTION_GAP)
        if normalized is data:
            # Check that the photo can be decoded: at the smallest size, a JPEG decoder still reads all of the file.
            image.draft("L", (1, 1))
            image.load()
        return normalized


def remove_metadata(data: bytes) -> bytes:
    """Return a photo without metadata, such as time, place or a thumbnail; TensorFlow decodes the same pixels.

    Args:
        data: Result of `normalize` or `normalize_for_prediction`.
    """
    parts = _jpeg_parts(data) if _is_jpeg(data) else _png_parts(data)
    return b"".join(parts)


@contextlib.contextmanager
def _opened(data: bytes, max_pixels: int, max_other_pixels: int | None) -> Iterator[Image.Image]:
    """Open a photo whose pixels are not decoded yet, and check its size.

    Raises:
        PhotoError: If the photo cannot be used; also in place of any exception in the `with` block.
    """
    if not data:
        raise PhotoError("empty", "the file is empty")
    if len(data) > MAX_BYTES:
        raise PhotoError("too_large", f"the file is larger than {MAX_BYTES // 2**20} MB")
    try:
        with warnings.catch_warnings():
            # Pillow warns about invalid metadata, and about sizes between its limit and MAX_PIXELS.
            warnings.simplefilter("ignore")
            image = _open(data)
            is_other = max_other_pixels is not None and image.format not in _CAMERA_FORMATS
            _check_size(*image.size, max_other_pixels if is_other else max_pixels)
            is_large = image.width * image.height > LARGE_PIXELS
            with _large_photo_lock if is_large else contextlib.nullcontext():
                yield image
    except PhotoError:
        raise
    except Exception as error:  # for damaged files, decoders raise almost any exception
        raise PhotoError("damaged", f"the image is damaged or cut off: {str(error).strip()}") from None


def may_be_photo(beginning: bytes) -> bool:
    """Return whether a file with these first 16 bytes has a format that `normalize` accepts."""
    return beginning.startswith(b"BM") or _SIGNATURES.match(beginning) is not None


def _normalized(image: Image.Image, data: bytes, max_side: int, reducing_gap: float) -> bytes:
    """Return the bytes of the normalized photo: `data` itself if it meets all requirements."""
    size = image.size
    image.info["exif"] = _only_orientation(_exif(image, data))
    is_normalized = (
        image.mode == "RGB"
        and max(size) <= max_side
        and not (_is_rotated(image) or _is_transparent(image))
        and _is_intact(image, data)
    )
    if is_normalized:
        return data
    rgb = _upright_rgb(image, max_side, reducing_gap)
    if min(rgb.size) < MIN_SIDE:
        shorter = min(rgb.size)
        raise PhotoError(
            "too_small",
            f"{size[0]} x {size[1]} pixels are too narrow; after resizing, the shorter side would have {shorter} "
            f"pixels, fewer than {MIN_SIDE}",
        )
    return _encode(rgb)


def _upright_rgb(image: Image.Image, max_side: int, reducing_gap: float) -> Image.Image:
    image = _resizable(image)
    # The resize comes first, because Pillow then decodes a JPEG at a fraction of its size.
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap)
    return _opaque(ImageOps.exif_transpose(image))


class _File(io.BytesIO):
    """A file with a limited number of reads, so that a photo with very many tiny segments does not keep Pillow busy."""

    _reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise PhotoError("damaged", "the image has too many segments")
        return super().read(size)


def _open(data: bytes) -> Image.Image:
    # Clear the EXIF and MPF markers: when Pillow opens a JPEG, it copies the length that each entry claims, in total
    # many times the size of the file.
    if _is_jpeg(data):
        if len(_JPEG_SCAN.findall(data)) > _MAX_SCANS:
            raise PhotoError("damaged", f"the image has more than {_MAX_SCANS} scans")
        data = _JPEG_DIRECTORIES.sub(lambda match: match[1] + bytes(len(match[2])), data)
    try:
        return Image.open(_File(data), formats=_FORMATS)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise PhotoError("too_large", f"too many pixels: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError):
        if _SIGNATURES.match(data):
            raise PhotoError("damaged", "the image is damaged or cut off") from None
        raise PhotoError("not_an_image", "not a JPEG, PNG, WebP, GIF, BMP or HEIC image") from None


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8")


def _exif(image: Image.Image, data: bytes) -> bytes:
    """Return the EXIF block of the file."""
    if _is_jpeg(data):
        exif = next((match for match in _JPEG_DIRECTORIES.finditer(data) if match[2] == _EXIF), None)
        return data[exif.end() : exif.end() + 2**16] if exif else b""
    if image.format == "PNG":
        image.load()  # the EXIF chunk may follow the pixels
        if "exif" not in image.info and "Raw profile type exif" in image.info:
            return bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return image.info.get("exif") or b""


def _only_orientation(exif: bytes) -> bytes:
    """Return an EXIF block with the orientation only.

    Pillow copies the value of every entry, with the length that the entry claims.
    """
    exif = exif.removeprefix(_EXIF)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return b""

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    first = number(4, 4) + 2
    for at in range(first, min(first + 12 * number(first - 2, 2), len(exif)), 12):
        if number(at, 2) == _ORIENTATION:
            long = number(at + 2, 2) in (5, 10, 12)  # 8 bytes, stored at an offset
            value, field_value = (number(at + 8, 4), 26) if long else (0, number(at + 8, 4))
            packed = (number(at, 2), 2), (number(at + 2, 2), 2), (1, 4), (field_value, 4), (0, 4)
            entry = b"".join(part.to_bytes(size, order) for part, size in packed)
            return b"".join(
                (_EXIF, exif[:4], (8).to_bytes(4, order), (1).to_bytes(2, order), entry, exif[value : value + 8])
            )
    return b""


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PhotoError("too_large", f"{width} x {height} pixels are more than the limit of {max_pixels:,}")
    if min(width, height) < MIN_SIDE:
        raise PhotoError("too_small", f"{width} x {height} pixels; the shorter side must have at least {MIN_SIDE}")


def _is_rotated(image: Image.Image) -> bool:
    # The comparison is by value, because some files store the number as a fraction, which exif_transpose also applies.
    return image.getexif().get(_ORIENTATION) in range(2, 9)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode[-1] in "Aa" or "transparency" in image.info


def _resizable(image: Image.Image) -> Image.Image:
    """Convert the image to a mode whose pixels can be averaged."""
    if image.mode.startswith("I"):
        # Pillow saturates 16-bit gray when converting it; the high byte has the 8-bit value.
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if _is_transparent(image):
        return image.convert("RGBA")
    return image if image.mode in _RESIZABLE else image.convert("RGB")


def _opaque(image: Image.Image) -> Image.Image:
    """Convert the image to RGB, with white in place of transparency."""
    if "A" in image.mode:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_intact(image: Image.Image, data: bytes) -> bool:
    """Return whether the model can decode the file as it is: TensorFlow rejects some damaged files that Pillow reads.

    TensorFlow decodes only JPEG and PNG.
    """
    match image.format:
        case "JPEG":
            return _is_intact_jpeg(data)
        case "PNG":
            return _is_intact_png(data, image.size)
    return False


def _is_intact_jpeg(data: bytes) -> bool:
    """Return whether the segments follow each other without gaps up to the end marker."""
    at = 2
    for _ in range(_MAX_READS):
        if data.startswith(b"\xff\xd9", at):
            return True
        segment = _JPEG_SEGMENT.match(data, at)
        if segment is None:
            return False
        marker, length = segment.groups()
        at += 2 + int.from_bytes(length)
        if marker == b"\xda":  # start of scan: coded pixels follow
            next_marker = _JPEG_MARKER.search(data, at)
            at = next_marker.start() if next_marker else len(data)
    return False


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """Yield the parts of an intact JPEG that its pixels depend on."""
    yield data[:2]
    at = 2
    while segment := _JPEG_SEGMENT.match(data, at):
        marker, end = segment[1], at + 2 + int.from_bytes(segment[2])
        if marker == b"\xda":  # start of scan: coded pixels follow
            end = _JPEG_MARKER.search(data, end).start()
        if marker in _JPEG_COLOR_SEGMENTS:
            if data.startswith(_JPEG_COLOR_SEGMENTS[marker], at + 4):
                yield _without_thumbnail(data[at:end])
        elif not (b"\xe0" <= marker <= b"\xef" or marker == b"\xfe"):  # application data or a comment
            yield data[at:end]
        at = end
    yield data[at : at + 2]  # end of image; more data may follow, such as another image


def _without_thumbnail(segment: bytes) -> bytes:
    """Return a JFIF segment without the thumbnail at its end, and an Adobe segment without undefined data."""
    is_jfif = segment[1] == 0xE0
    content = segment[4:16] + b"\0\0" if is_jfif else segment[4:16]
    return segment[:2] + (2 + len(content)).to_bytes(2) + content


def _png_parts(data: bytes) -> Iterator[bytes]:
    """Yield the parts of an intact PNG that its pixels depend on."""
    yield data[:8]
    at, kind = 8, b""
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            yield data[at:end]
        at = end


def _is_intact_png(data: bytes, size: tuple[int, int]) -> bool:
    """Return whether the file is 8-bit RGB with correct checksums and exactly the expected amount of pixel data."""
    if data[8:29] != struct.pack(">I4sIIBBBBB", 13, b"IHDR", *size, 8, 2, 0, 0, 0):
        return False
    at, kinds, parts = 8, [], []
    while kinds[-1:] != [b"IEND"]:
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if zlib.crc32(data[at + 4 : end]).to_bytes(4) != data[end : end + 4]:
            return False
        kinds.append(data[at + 4 : at + 8])
        if kinds[-1] == b"IDAT":
            parts.append(data[at + 8 : end])
        at = end + 4
    if not _PNG_CHUNKS.fullmatch(b"".join(kinds)):
        return False
    stream, expected = zlib.decompressobj(), size[1] * (1 + 3 * size[0])
    return len(stream.decompress(b"".join(parts), expected + 1)) == expected and stream.eof


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
