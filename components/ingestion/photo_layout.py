"""Breed folders of a photo source. A folder that may be a breed but has no usable photo stops the run."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from components.errors import DataError
from serving.names import counted, distinguishable, is_one_line, printable, spelling, spelling_variants
from serving.photo_origins import ORIGINS_FILE

BROKEN_LINK = "a broken link"
REPEATED_LINK = "a link to a folder that has already been read"
LINK_IN_ARCHIVE = "a link, which is not followed in archives"
NESTED_ARCHIVE = "an archive; unpack it into its breed folder"
NOT_REGULAR_FILE = "not a regular file"
OUTSIDE_ARCHIVE = "its path points outside the archive"
EXPECTED_LAYOUT = "expected a folder or an archive (.zip, .tar.gz) with one folder of photos per breed"

# Folders that published data sets have next to the photos. They are skipped only if all their files are metadata.
_METADATA_FOLDERS = {
    *("annotation", "annotations", "code", "csv", "data", "doc", "docs", "json", "label", "labels", "lists"),
    *("meta", "metadata", "notebooks", "scripts", "splits", "src", "xml"),
}
_METADATA_SUFFIXES = {
    *("bib", "cff", "csv", "doc", "docx", "htm", "html", "ipynb", "json", "jsonl", "log", "lst", "mat", "md", "names"),
    *("npy", "npz", "parquet", "pbtxt", "pdf", "pkl", "py", "rst", "tsv", "txt", "url", "xls", "xlsx", "xml", "yaml"),
    *("yml",),
}
_ARCHIVE_SUFFIXES = {
    *("7z", "ace", "arj", "bz2", "cab", "dmg", "gz", "iso", "lz", "lz4", "lzh", "lzma", "rar", "tar", "tbz", "tbz2"),
    *("tgz", "txz", "tzst", "xz", "z", "zip", "zipx", "zst"),
    *(f"{letter}{number:02}" for letter in "rz" for number in range(100)),  # parts of .rar and .zip
}
_VIDEO_SUFFIXES = {
    *("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "webm", "wmv"),
}
_DATABASE_SUFFIXES = {"db", "h5", "hdf5", "lmdb", "mdb", "sqlite", "tfrecord", "tfrecords"}
_VECTOR_SUFFIXES = {"ai", "eps", "svg", "svgz"}
_NON_PHOTO_SUFFIXES = _METADATA_SUFFIXES | _ARCHIVE_SUFFIXES | _VIDEO_SUFFIXES | _DATABASE_SUFFIXES | _VECTOR_SUFFIXES
_IMAGE_SUFFIXES = {
    *("arw", "avif", "bmp", "cr2", "cr3", "dng", "gif", "heic", "heif", "hif", "jfif", "jpe", "jpeg", "jpg", "jxl"),
    *("nef", "png", "psd", "raw", "tif", "tiff", "webp"),
}
_SPLIT_NAMES = {
    *("dev", "eval", "evaluation", "holdout", "test", "testing", "train", "training", "val", "valid", "validation"),
}
# One or two suffixes, then an optional part number: .zip.001, .tfrecord-00000-of-00010.
_SUFFIX_PATTERN = re.compile(r"((?:\.(?:[a-z][a-z0-9]{0,8}|7z)){1,2})(?:\.\d{3}|-\d+-of-\d+)?$", re.IGNORECASE)
_NUMBERED_BREED_FILE = re.compile(r"(.*[^\W\d_])[_-]\d+\.\w+")
# Photos outside the breed folders stop the run if there are at least this many and at least this share of the photos of
# the smallest breed.
_MIN_STRAY_PHOTOS = 3
_MIN_STRAY_SHARE = 0.1
_MAX_DEPTH = 100
_MAX_LISTED = 10


class Excluded(NamedTuple):
    """A file or folder that is excluded without being read.

    Attributes:
        path: Path in the source.
        reason: Reason for the exclusion.
    """

    path: str
    reason: str


class SourceContents(NamedTuple):
    """Files and folders of a source, without hidden ones. Paths use "/" as separator and do not end with it.

    Attributes:
        files: Paths of the regular files.
        folders: Path -> reason why the folder cannot be read, "" if it can be read. Parent folders of `files` may be
            missing here.
        excluded: Entries that are neither regular files nor folders.
        warnings: Warnings about the source.
    """

    files: list[str]
    folders: dict[str, str]
    excluded: list[Excluded]
    warnings: list[str]


class PhotoListing(NamedTuple):
    """Photos of a source with their breeds.

    Attributes:
        photos: Path in the source -> breed, sorted by path.
        excluded: Files and folders outside the breed folders, and unreadable entries; sorted by path.
        warnings: Warnings about how the folders were interpreted.
        origins_files: Paths of the files with the origins of captured photos; see `serving.photo_origins`.
    """

    photos: dict[str, str]
    excluded: list[Excluded]
    warnings: list[str]
    origins_files: list[str]


def find_breeds(data: str, contents: SourceContents) -> PhotoListing:
    """Find the breed folders; they may be below other folders or in the splits of a data set that is already split.

    Args:
        data: Address of the source, for messages.
        contents: Files and folders of the source.

    Raises:
        DataError: If there are no photos, if a folder that may be a breed has no usable photo, or if breed names are
            invalid or differ only in spelling.
    """
    paths = [*contents.files, *contents.folders]
    if deep := next((path for path in paths if path.count("/") > _MAX_DEPTH), None):
        raise DataError(
            f"{data}: {printable(deep[:50])}... is nested more than {_MAX_DEPTH} folders deep; move it out of the data"
        )
    origins_files = sorted(path for path in contents.files if path.rpartition("/")[2] == ORIGINS_FILE)
    photo_files = [path for path in contents.files if path not in origins_files]
    layout = _Layout(_build_tree(contents._replace(files=photo_files)))
    hint = _breeds_in_file_names_hint(layout) + _alternative_roots_hint(layout)
    if not layout.photos:
        reasons = [*layout.unusable, *(f"{printable(path)}: {reason}" for path, reason in sorted(layout.excluded))]
        first = "".join(f" ({reason})" for reason in reasons[:1])
        raise DataError(f"{data}: no photos found{first}; {EXPECTED_LAYOUT}{hint}")
    if layout.unusable:
        raise DataError(
            f"{data}: folders that may be breeds have no usable photos:\n{_indented_lines(layout.unusable)}\n"
            "Put the photos of each breed directly into its folder, and all breed folders into one folder. "
            f"Move folders that are not breeds out of the data{hint}"
        )
    if hint and len(set(layout.photos.values())) == 1:
        raise DataError(f"{data}: all photos are in one folder; {EXPECTED_LAYOUT}{hint}")
    _check_breed_names(data, set(layout.photos.values()))
    photos, ambiguous = _exclude_ambiguous_paths(layout.photos)
    breeds = {printable(breed) for breed in photos.values() if printable(breed) != breed}
    escaped = [f"breed names that are not UTF-8 are shown with escapes: {', '.join(sorted(breeds))}"] * bool(breeds)
    photos = {path: printable(breed) for path, breed in sorted(photos.items())}
    warnings = [*contents.warnings, *layout.warnings, *_archive_warnings(layout.excluded), *escaped]
    return PhotoListing(photos, sorted([*layout.excluded, *ambiguous]), warnings, origins_files)


@dataclass
class _Folder:
    """A folder of the source.

    Attributes:
        path: Path in the source, with "/" at the end; "" for the source itself.
        problem: Reason why the folder cannot be read; "" if it can be read.
        folders: Name -> subfolder.
        files: Names of the files directly in it.
        excluded: Entries directly in it that are neither regular files nor folders.
    """

    path: str
    problem: str = ""
    folders: dict[str, "_Folder"] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @cached_property
    def photo_count(self) -> int:
        """Number of files directly in the folder that may be photos."""
        return sum(_suffix(name) not in _NON_PHOTO_SUFFIXES for name in self.files)

    @cached_property
    def nested_photo_count(self) -> int:
        """Number of files in its subfolders, at any depth, that may be photos."""
        return sum(folder.photo_count + folder.nested_photo_count for folder in self.folders.values())

    @property
    def data_folders(self) -> list["_Folder"]:
        """Subfolders that may be or contain breed folders."""
        return [folder for folder in self.folders.values() if not folder.is_metadata()]

    def is_metadata(self) -> bool:
        """Whether it is one of the metadata folders that published data sets have next to the photos."""
        return self.name.casefold() in _METADATA_FOLDERS and self._has_only_metadata()

    def _has_only_metadata(self) -> bool:
        own = all(_suffix(name) in _METADATA_SUFFIXES for name in self.files) and not (self.excluded or self.problem)
        return own and all(folder._has_only_metadata() for folder in self.folders.values())

    def walk_files(self) -> Iterator[str]:
        """Paths of all files in the folder, at any depth."""
        yield from (f"{self.path}{name}" for name in self.files)
        for folder in self.folders.values():
            yield from folder.walk_files()


class _Layout:
    """The role of each folder: breed folder, parent of breed folders, or excluded.

    Attributes:
        photos: Path -> breed.
        excluded: Same as in `PhotoListing`.
        unusable: Messages about folders that may be breeds but have no usable photo.
        warnings: Same as in `PhotoListing`.
        alternative_roots: Paths of other folders that contain breed folders.
        stray_files: Paths of files outside the breed folders that may be photos.
    """

    def __init__(self, top: _Folder):
        self.photos: dict[str, str] = {}
        self.excluded: list[Excluded] = []
        self.unusable: list[str] = []
        self.warnings: list[str] = []
        self.alternative_roots: list[str] = []
        self.stray_files: list[str] = []
        self._roots = {root.path for root in _breed_roots(top)}
        if len(self._roots) > 1:
            names = ", ".join(repr(printable(path.rstrip("/"))) for path in sorted(self._roots))
            self.warnings.append(
                f"the folders {names} are read as one data set; the `split` settings assign the splits"
            )
        self._visit(top)
        self._check_splits()
        self._check_stray_files()

    def _check_splits(self) -> None:
        """Check that each split shares breeds with the others; `test/unknown/1.jpg`, for example, is not a breed."""
        splits = {root: {breed for path, breed in self.photos.items() if path.startswith(root)} for root in self._roots}
        for root, breeds in sorted(splits.items()):
            others = set().union(*(splits[other] for other in splits if other != root))
            if len(splits) > 1 and breeds and others.isdisjoint(breeds):
                names = ", ".join(repr(printable(breed)) for breed in sorted(breeds)[:3])
                self.unusable.append(f"{printable(root)}: its folders ({names}) are not in the other splits")
                self.alternative_roots.append(root)

    def _check_stray_files(self) -> None:
        """Check that the files outside the breed folders are too few to be a breed.

        Files without an image suffix, such as README, are rarely photos, so more of them are allowed.
        """
        images = sum(_suffix(path) in _IMAGE_SUFFIXES for path in self.stray_files)
        smallest = min(Counter(self.photos.values()).values(), default=0)
        first = _first_three(map(printable, sorted(self.stray_files)))
        files = f"{len(self.stray_files)} files outside the breed folders"
        is_image_breed = images >= max(_MIN_STRAY_PHOTOS, _MIN_STRAY_SHARE * smallest)
        if is_image_breed or len(self.stray_files) >= max(_MIN_STRAY_PHOTOS, smallest):
            self.unusable.append(f"{files}: {first}")
        elif images >= _MIN_STRAY_PHOTOS:
            self.warnings.append(f"{files} are excluded: {first}")

    def _visit(self, folder: _Folder) -> None:
        """Visit a folder that contains the breed folders, directly or in subfolders."""
        is_root = folder.path in self._roots
        parents = [child for child in folder.folders.values() if not is_root and self._contains_root(child)]
        are_splits = len(parents) > 0 and _has_only_splits(folder)
        for child in folder.folders.values():
            if child in parents:
                self._visit(child)
            elif child.is_metadata():
                self._exclude(child, f"not a breed: {_describe_contents(child)}")
            elif is_root:
                self._add_breed(child)
            elif are_splits and not child.problem:
                self._exclude(child, f"no breed folders: {_describe_contents(child)}")
                self.warnings.append(f"{printable(child.path)} is excluded: it has no breed folders")
            else:
                self._add_unusable(child)
        self._exclude_files(folder)
        self.stray_files += [
            f"{folder.path}{name}" for name in folder.files if _suffix(name) not in _NON_PHOTO_SUFFIXES
        ]
        for path, reason in folder.excluded:
            has_file_suffix = _suffix(path) in _IMAGE_SUFFIXES | _NON_PHOTO_SUFFIXES
            if reason == OUTSIDE_ARCHIVE and _suffix(path) not in _NON_PHOTO_SUFFIXES:
                self.stray_files.append(path)
            elif reason in (LINK_IN_ARCHIVE, REPEATED_LINK, BROKEN_LINK, NOT_REGULAR_FILE) and not has_file_suffix:
                self.unusable.append(f"{printable(path)}: {reason}")

    def _contains_root(self, folder: _Folder) -> bool:
        return any(root.startswith(folder.path) for root in self._roots)

    def _add_breed(self, folder: _Folder) -> None:
        if folder.problem or not folder.photo_count:
            self._add_unusable(folder)
            return
        archives = [name for name in folder.files if has_archive_suffix(name)]
        self.photos |= {f"{folder.path}{name}": folder.name for name in folder.files if name not in archives}
        self.excluded += [*folder.excluded, *(Excluded(f"{folder.path}{name}", NESTED_ARCHIVE) for name in archives)]
        for nested in folder.folders.values():
            if nested.is_metadata():
                self._exclude(nested, f"not a breed: {_describe_contents(nested)}")
            elif nested.photo_count + nested.nested_photo_count:
                self._add_unusable(nested)
            else:
                self._exclude_tree(nested)

    def _add_unusable(self, folder: _Folder) -> None:
        self.unusable.append(f"{printable(folder.path)}: {_describe_contents(folder)}")
        if folder.nested_photo_count > folder.photo_count:
            roots = [root for root in _breed_roots(folder) if not _has_only_splits(root)]
            self.alternative_roots += [
                root.path for root in roots if sum(child.photo_count > 0 for child in root.data_folders) > 1
            ]

    def _exclude(self, folder: _Folder, reason: str) -> None:
        self.excluded.append(Excluded(folder.path, reason))

    def _exclude_tree(self, folder: _Folder) -> None:
        if folder.problem:
            self._exclude(folder, folder.problem)
        self._exclude_files(folder)
        for child in folder.folders.values():
            self._exclude_tree(child)

    def _exclude_files(self, folder: _Folder) -> None:
        for name in folder.files:
            reason = NESTED_ARCHIVE if has_archive_suffix(name) else "not directly in a breed folder"
            self.excluded.append(Excluded(f"{folder.path}{name}", reason))
        self.excluded += folder.excluded


def _breed_roots(folder: _Folder) -> list[_Folder]:
    """Return the folders whose subfolders are breeds.

    The search descends into train, val and test folders, and into a single folder of folders.
    """
    parents = [child for child in folder.data_folders if child.nested_photo_count > child.photo_count]
    if parents and _has_only_splits(folder):
        roots = [root for parent in parents for root in _breed_roots(parent)]
        return [root for root in roots if not _has_only_splits(root)] or [folder]
    if len(parents) == 1 and not any(child.photo_count for child in folder.data_folders if child is not parents[0]):
        return _breed_roots(parents[0])
    return [folder]


def _has_only_splits(folder: _Folder) -> bool:
    return all(_is_split_name(child.name) for child in folder.data_folders)


def _is_split_name(name: str) -> bool:
    """Whether a word in the name is the name of a split, such as "train"."""
    return not _SPLIT_NAMES.isdisjoint(re.split(r"[\W_\d]+", name.casefold()))


def _build_tree(contents: SourceContents) -> _Folder:
    top = _Folder("")

    def folder_at(path: str) -> _Folder:
        folder = top
        for name in filter(None, path.split("/")):
            folder = folder.folders.setdefault(name, _Folder(f"{folder.path}{name}/"))
        return folder

    for path, problem in sorted(contents.folders.items()):
        folder_at(path).problem = problem
    for path in sorted(contents.files):
        parent, _, name = path.rpartition("/")
        folder_at(parent).files.append(name)
    for entry in sorted(contents.excluded):
        parent = "" if entry.reason == OUTSIDE_ARCHIVE else entry.path.rstrip("/").rpartition("/")[0]
        folder_at(parent).excluded.append(entry)
    return top


def _suffix(name: str) -> str:
    """Return the last suffix of a file name, in lower case and without the dot."""
    match = _SUFFIX_PATTERN.search(name)
    return match[1].rpartition(".")[2].lower() if match else ""


def has_archive_suffix(name: str) -> bool:
    """Whether the file name has the suffix of an archive or of a part of one."""
    return _suffix(name) in _ARCHIVE_SUFFIXES


def _describe_contents(folder: _Folder) -> str:
    """Phrase about the contents of a folder, such as "contains 2 .csv files"."""
    if folder.problem:
        return folder.problem
    suffixes = (_SUFFIX_PATTERN.search(name) for name in folder.files)
    kinds = Counter((f"{match[0].lower()} file" if match else "file", "") for match in suffixes)
    kinds.update(("file", f" ({reason})") for _, reason in folder.excluded)
    parts = [f"{counted(number, noun)}{reason}" for (noun, reason), number in kinds.most_common(3)]
    if folder.folders:
        names = _first_three(repr(printable(name)) for name in folder.folders)
        files = sum(1 for child in folder.folders.values() for _ in child.walk_files())
        parts.append(f"{counted(len(folder.folders), 'folder')} with {counted(files, 'file')} ({names})")
    unpack = "; unpack the archives" if any(has_archive_suffix(path) for path in folder.walk_files()) else ""
    return "contains " + (", ".join(parts) or "no visible files") + unpack


def _alternative_roots_hint(layout: _Layout) -> str:
    """Hint about other folders that contain breed folders."""
    if not layout.alternative_roots:
        return ""
    paths = " or ".join(printable(path.rstrip("/")) for path in layout.alternative_roots[:3])
    return f". There are breed folders in {paths}; to use them, pass that folder (unpack an archive first)"


def _breeds_in_file_names_hint(layout: _Layout) -> str:
    """Hint for the case that all photos are in one folder and their file names start with the breed."""
    paths = sorted([*layout.stray_files, *layout.photos]) if len(set(layout.photos.values())) < 2 else []
    matches = {path: _NUMBERED_BREED_FILE.fullmatch(path.rpartition("/")[2]) for path in paths}
    breeds = {path: match[1] for path, match in matches.items() if match}
    if len(set(breeds.values())) < 2 or len(breeds) < len(paths) / 2:
        return ""
    return (
        f". File names such as {printable(next(iter(breeds)))} seem to start with the breed; move the photos of each "
        "breed into a folder named after it. For Oxford-IIIT Pet, `catbreeds data oxford FOLDER` creates these folders"
    )


def _archive_warnings(excluded: list[Excluded]) -> list[str]:
    paths = sorted(printable(path) for path, reason in excluded if reason == NESTED_ARCHIVE)
    if not paths:
        return []
    return [f"{counted(len(paths), 'archive')} excluded ({_first_three(paths)}); unpack any that contain photos"]


def _check_breed_names(data: str, breeds: set[str]) -> None:
    if invalid := sorted(breed for breed in breeds if not spelling(breed) or not is_one_line(breed)):
        names = ", ".join(map(ascii, invalid))
        raise DataError(
            f"{data}: invalid breed name {names}; rename the folder, using visible characters and no control characters"
        )
    if len(breeds) > 1 and all(map(_is_split_name, breeds)):
        names = ", ".join(map(repr, sorted(breeds)))
        raise DataError(f"{data}: {names} are splits of a data set but have no breed folders; {EXPECTED_LAYOUT}")
    printed = {breed: printable(breed) for breed in breeds}
    same = [[breed for breed in sorted(breeds) if printed[breed] == name] for name in sorted(set(printed.values()))]
    if groups := [*spelling_variants(printed.values()), *(group for group in same if len(group) > 1)]:
        raise DataError(
            f"{data}: names of breed folders differ only in spelling:\n"
            f"{_indented_lines([distinguishable(group) for group in groups])}\n"
            "Put the photos of each breed into one folder"
        )


def _exclude_ambiguous_paths(photos: dict[str, str]) -> tuple[dict[str, str], list[Excluded]]:
    """Keep one photo for each printable path, because reports identify photos by it."""
    kept, printed, excluded = {}, set(), []
    for path, breed in sorted(photos.items()):
        if printable(path) in printed:
            excluded.append(Excluded(path, "its name is displayed the same as that of another file; rename it"))
        else:
            printed.add(printable(path))
            kept[path] = breed
    return kept, excluded


def _first_three(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join([*names[:3], *["..."] * (len(names) > 3)])


def _indented_lines(lines: list[str]) -> str:
    more = len(lines) - _MAX_LISTED
    return "\n".join(f"  {line}" for line in [*lines[:_MAX_LISTED], *([f"... and {more} more"] if more > 0 else [])])
