"""Write unusable files of every kind that ingestion detects, for tests and demonstrations."""

import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.datasets.sample_data import BREEDS, draw_photo
from serving.photo_normalization import MAX_BYTES, normalize


class Defect(NamedTuple):
    """An unusable file.

    Attributes:
        path: Path of the file.
        kind: Kind that ingestion must report.
    """

    path: Path
    kind: str


def write_defects(
    folder: Path, photos: list[Path], split_of: Callable[[str], str], copies: int = 1, seed: int = 0
) -> list[Defect]:
    """Add unusable files to sample data.

    Args:
        folder: Folder with one folder per breed.
        photos: Usable photos in it. The first `copies` of those in train get a near-duplicate in another split.
        split_of: Function that returns the split of a content hash.
        copies: Number of files of each kind.
        seed: Seed for the contents of the files.

    Raises:
        ValueError: If too few photos are in train.
    """
    breeds = sorted({path.parent for path in photos})
    written = []

    def write(path: Path, content: bytes, kind: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(Defect(path, kind))

    for copy in range(copies):
        breed = breeds[copy % len(breeds)]
        image = draw_photo(BREEDS[copy % len(BREEDS)], f"defect {seed} {copy}")
        for name, kind, content in _single_files(image, random.Random(f"{seed} {copy}")):
            write(breed / f"{Path(name).stem}_{copy}{Path(name).suffix}", content, kind)
        conflict = _encode_jpeg(image, 90)
        for other in (breed, breeds[(copy + 1) % len(breeds)]):
            write(other / f"two_breeds_{copy}.jpg", conflict, "label_conflict")
        original = photos[copy % len(photos)]
        write(original.with_name(f"{original.stem}_copy_{copy}{original.suffix}"), original.read_bytes(), "duplicate")
        write(folder / f"loose_{copy}.jpg", conflict, "not_read")
    for number, (original, content) in enumerate(_near_duplicates_across_splits(photos, split_of, copies)):
        write(original.with_name(f"smaller_copy_{number}.jpg"), content, "near_duplicate")
    written.append(_write_oversized_file(breeds[0] / "film.jpg"))
    written.append(_write_dangling_link(breeds[0] / "moved_away.jpg"))
    for name in (".DS_Store", "Thumbs.db", "__MACOSX/._cat.jpg", "._cat.jpg"):
        hidden = breeds[0] / name
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_bytes(b"not a photo")
    return written


def _single_files(image: Image.Image, rng: random.Random) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, kind and content of files that are unusable regardless of the other files."""
    yield "empty.jpg", "empty", b""
    yield "text.jpg", "not_an_image", b"Not Found\n" * rng.randint(1, 50)
    yield "page.png", "not_an_image", b"<!doctype html><title>404</title>"
    yield "noise.jpg", "not_an_image", rng.randbytes(rng.randint(100, 5000))
    yield "scan.jpg", "not_an_image", _encode(image, "TIFF")
    yield "document.png", "not_an_image", _encode(image, "PDF")
    for format, ending in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("HEIF", "heic"),
    ):
        whole = _encode(image, format)
        yield f"cut_off.{ending}", "damaged", whole[: int(len(whole) * rng.uniform(0.4, 0.8))]
    png = bytearray(_encode(image, "PNG"))
    png[len(png) // 2] ^= 0xFF
    yield "flipped_bit.png", "damaged", bytes(png)
    yield "thumbnail.jpg", "too_small", _encode_jpeg(image.resize((24, rng.randint(8, 40))), 80)
    yield "strip.png", "too_small", _encode(image.resize((rng.randint(2000, 3000), 40)), "PNG")
    huge = Image.new("1", (12_000, 9_000 + rng.randint(0, 100)))  # 100 million pixels in a few kilobytes
    yield "bomb.png", "too_large", _encode(huge, "PNG")


def _near_duplicates_across_splits(
    photos: list[Path], split_of: Callable[[str], str], count: int
) -> Iterator[tuple[Path, bytes]]:
    """Yield photos in train, each with a smaller copy that is assigned to another split."""
    for photo in photos:
        picture = normalize(photo.read_bytes())
        if not count:
            return
        if split_of(picture.digest) != "train":
            continue
        for quality in range(95, 60, -1):
            size = (max(picture.width * 3 // 4, 64), max(picture.height * 3 // 4, 64))
            content = _encode_jpeg(Image.open(io.BytesIO(picture.data)).resize(size), quality)
            if split_of(normalize(content).digest) != "train":
                yield photo, content
                count -= 1
                break
    if count:
        raise ValueError(f"{count} more photos are needed in train; generate more photos")


def _write_oversized_file(path: Path) -> Defect:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a sparse file, which takes no disk space
    return Defect(path, "too_large")


def _write_dangling_link(path: Path) -> Defect:
    if not os.path.lexists(path):
        path.symlink_to("nowhere.jpg")
    return Defect(path, "not_read")


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    return _encode(image, "JPEG", quality=quality)


def _encode(image: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
