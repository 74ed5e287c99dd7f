"""The one place where a photo becomes what models see. Ingestion, gateway and client all import it; Pillow only."""

import contextlib
import hashlib
import io
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass, field

import pillow_heif
from PIL import Image, ImageOps

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000
# What cameras write. A JPEG is decoded at a fraction of its size.
_CAMERA_FORMATS = ("JPEG", "HEIF")
# Photos with more pixels take up to hundreds of megabytes; see docs/serving.md for measurements.
LARGE_PIXELS = 24_000_000
MAX_SIDE = 1024
MIN_SIDE = 32
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "HEIF")
_JPEG_QUALITY = 95
# Of the modes that formats decode to; the others become one of these before they are resized.
_RESIZABLE = ("L", "LA", "RGB", "RGBA", "CMYK")
_BEGINNINGS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|....ftyp(hei|hev|mif|msf)", re.DOTALL)
_JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xc2\xc4\xda\xdb\xdd\xe0-\xef\xfe])(..)", re.DOTALL)
_JPEG_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_DIRECTORIES = re.compile(rb"(\xff[\xe1\xe2]..)(Exif\0\0|MPF\0)", re.DOTALL)
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
# A photo of 64 MB in pieces of 8 kB needs fewer. Pillow's time may grow with the square of the number of pieces.
_MOST_READS = 30_000
# Each costs time for all pixels, however few bytes it has; cameras and editors write about ten.
_MOST_SCANS = 100
_PNG_CHUNKS = re.compile(rb"IHDR([a-z][A-Za-z]{3})*(IDAT)+([a-z][A-Za-z]{3})*IEND")

pillow_heif.register_heif_opener()
# Held while a large photo is decoded, so that a process needs the memory for one of them, however many threads it has.
_large_photo = threading.Lock()


class PhotoError(ValueError):
    """The bytes are not a photo we take; the message is the reason, fit to be shown.

    Attributes:
        kind: one of KINDS.
    """

    KINDS = ("unreadable", "empty", "not_an_image", "damaged", "too_small", "too_large")

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind

    def __reduce__(self):
        return PhotoError, (self.kind, str(self))


@dataclass(frozen=True)
class Photo:
    """A normalised photo.

    Attributes:
        data: JPEG or PNG bytes, upright, 8-bit RGB.
        width: pixels.
        height: pixels.
        digest: SHA-256 of the brightness of each pixel and the size, in hex: the identity of the picture, whatever a
            file says about it besides.
        luma: that brightness, mode L.
    """

    data: bytes
    width: int
    height: int
    digest: str
    luma: Image.Image = field(repr=False, compare=False)


def normalise(
    data: bytes, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS, max_other_pixels: int | None = None
) -> Photo:
    """Decodes a photo and makes it upright opaque RGB, with the longer side at most `max_side` pixels.

    Photos with more than LARGE_PIXELS are decoded one at a time in a process.

    Args:
        data: content of the file.
        max_side: pixels of the longer side of what is returned.
        max_pixels: that a photo may have.
        max_other_pixels: that it may have if it is neither JPEG nor HEIC; None: `max_pixels`.

    The format is known by content: JPEG, PNG, WebP, GIF (first frame), BMP or HEIC. A JPEG or PNG that is all that
    already keeps its bytes, so that nothing is lost by encoding it twice.

    Raises:
        PhotoError: empty, no image of these formats, damaged or cut off, too small, or too large; pixels are counted
            before any is decoded.
    """
    if not data:
        raise PhotoError("empty", "the file is empty")
    if len(data) > MAX_BYTES:
        raise PhotoError("too_large", f"the file has more than {MAX_BYTES // 2**20} MB")
    try:
        with warnings.catch_warnings():
            # Of doubtful metadata, and of sizes between Pillow's limit and ours.
            warnings.simplefilter("ignore")
            image = _open(data)
            is_other = max_other_pixels is not None and image.format not in _CAMERA_FORMATS
            _check_size(*image.size, max_other_pixels if is_other else max_pixels)
            is_large = image.width * image.height > LARGE_PIXELS
            with _large_photo if is_large else contextlib.nullcontext():
                return _normalise(image, data, max_side)
    except PhotoError:
        raise
    except Exception as error:  # a damaged file leads decoders to raise almost anything
        raise PhotoError("damaged", f"the image is damaged or cut off: {str(error).strip()}") from None


def may_be_photo(beginning: bytes) -> bool:
    """Whether a file with this beginning, 16 bytes, is of a format that `normalise` takes."""
    return beginning.startswith(b"BM") or _BEGINNINGS.match(beginning) is not None


def _normalise(image: Image.Image, data: bytes, max_side: int) -> Photo:
    size = image.size
    image.info["exif"] = _only_orientation(_exif(image, data))
    is_whole = _KEPT_IF_WHOLE.get(image.format)
    kept = (
        is_whole is not None
        and image.mode == "RGB"
        and max(size) <= max_side
        and not (_is_turned(image) or _is_transparent(image))
        and is_whole(data, size)
    )
    if not kept:
        rgb = _upright_rgb(image, max_side)
        if min(rgb.size) < MIN_SIDE:
            shorter = min(rgb.size)
            raise PhotoError(
                "too_small", f"{size[0]} x {size[1]} is too narrow: reduced, its shorter side is {shorter}"
            )
        data = _encode(rgb)
        image = Image.open(io.BytesIO(data))
    # A JPEG holds brightness apart from colour, which then need not be decoded: half the time.
    image.draft("L", image.size)
    luma = image.convert("L")
    digest = hashlib.sha256(luma.tobytes())
    digest.update(f"{luma.width}x{luma.height}".encode())
    return Photo(data, luma.width, luma.height, digest.hexdigest(), luma)


def _upright_rgb(image: Image.Image, max_side: int) -> Image.Image:
    image = _resizable(image)
    # Before anything else is done to the pixels: a JPEG is then decoded at a fraction of its size.
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return _opaque(ImageOps.exif_transpose(image))


class _File(io.BytesIO):
    """A file that can be read only so often, so that one of very many tiny pieces does not keep Pillow busy."""

    _reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise PhotoError("damaged", "the image is in too many pieces")
        return super().read(size)


def _open(data: bytes) -> Image.Image:
    # Pillow reads all that these directories claim, as soon as it opens a JPEG: many times the size of the file.
    if _is_jpeg(data):
        if len(_JPEG_SCAN.findall(data)) > _MOST_SCANS:
            raise PhotoError("damaged", f"the image has more than {_MOST_SCANS} scans")
        data = _JPEG_DIRECTORIES.sub(lambda found: found[1] + bytes(len(found[2])), data)
    try:
        return Image.open(_File(data), formats=_FORMATS)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise PhotoError("too_large", f"too many pixels: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError):
        if _BEGINNINGS.match(data):
            raise PhotoError("damaged", "the image is damaged or cut off") from None
        raise PhotoError("not_an_image", "not a JPEG, PNG, WebP, GIF, BMP or HEIC image") from None


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8")


def _exif(image: Image.Image, data: bytes) -> bytes:
    """What a file says of its picture."""
    if _is_jpeg(data):
        found = next((found for found in _JPEG_DIRECTORIES.finditer(data) if found[2] == _EXIF), None)
        return data[found.end() : found.end() + 2**16] if found else b""
    if image.format == "PNG":
        image.load()  # it may follow the pixels
        if "exif" not in image.info and "Raw profile type exif" in image.info:
            return bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return image.info.get("exif") or b""


def _only_orientation(exif: bytes) -> bytes:
    """EXIF without the other entries, of which Pillow would copy what each claims to be its value."""
    exif = exif.removeprefix(_EXIF)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return b""

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    first = number(4, 4) + 2
    for at in range(first, min(first + 12 * number(first - 2, 2), len(exif)), 12):
        if number(at, 2) == _ORIENTATION:
            long = number(at + 2, 2) in (5, 10, 12)  # 8 bytes, which are elsewhere
            value, there = (number(at + 8, 4), 26) if long else (0, number(at + 8, 4))
            packed = (number(at, 2), 2), (number(at + 2, 2), 2), (1, 4), (there, 4), (0, 4)
            entry = b"".join(part.to_bytes(size, order) for part, size in packed)
            return b"".join(
                (_EXIF, exif[:4], (8).to_bytes(4, order), (1).to_bytes(2, order), entry, exif[value : value + 8])
            )
    return b""


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PhotoError("too_large", f"{width} x {height} pixels are more than {max_pixels:,}")
    if min(width, height) < MIN_SIDE:
        raise PhotoError("too_small", f"{width} x {height} pixels; the shorter side needs {MIN_SIDE}")


def _is_turned(image: Image.Image) -> bool:
    # Some files give the number as a fraction, and exif_transpose heeds that too.
    return image.getexif().get(0x0112) in range(2, 9)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode[-1] in "Aa" or "transparency" in image.info


def _resizable(image: Image.Image) -> Image.Image:
    """The image in a mode whose pixels can be averaged."""
    if image.mode.startswith("I"):
        # Pillow saturates 16-bit grey when it converts; the high byte is the picture.
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if _is_transparent(image):
        return image.convert("RGBA")
    return image if image.mode in _RESIZABLE else image.convert("RGB")


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, with white where it was transparent."""
    if "A" in image.mode:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_whole_jpeg(data: bytes, size: tuple[int, int]) -> bool:
    """Whether segment follows segment without a gap, up to the end mark."""
    at = 2
    for _ in range(_MOST_READS):
        if data.startswith(b"\xff\xd9", at):
            return True
        segment = _JPEG_SEGMENT.match(data, at)
        if segment is None:
            return False
        kind, length = segment.groups()
        at += 2 + int.from_bytes(length)
        if kind == b"\xda":  # coded pixels follow
            marker = _JPEG_MARKER.search(data, at)
            at = marker.start() if marker else len(data)
    return False


def _is_whole_png(data: bytes, size: tuple[int, int]) -> bool:
    """Whether it is plain 8-bit RGB with right checksums, and its data are exactly the rows of the picture."""
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
    stream, wanted = zlib.decompressobj(), size[1] * (1 + 3 * size[0])
    return len(stream.decompress(b"".join(parts), wanted + 1)) == wanted and stream.eof


# What TensorFlow decodes in the model, and whether it will: it refuses some damaged files that Pillow takes.
_KEPT_IF_WHOLE = {"JPEG": _is_whole_jpeg, "PNG": _is_whole_png}


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
