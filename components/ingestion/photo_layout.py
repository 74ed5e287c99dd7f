"""Which folder of a source holds which breed. A folder that could be a breed and gives no photo stops the run."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from components.errors import DataError
from serving.names import counted, distinguishable, is_one_line, printable, spelling, spelling_variants

LINK_TO_NOTHING = "a link to nothing"
LINK_AGAIN = "a link to a folder that is read already"
LINK = "a link"
ARCHIVE = "an archive; unpack it into the folder of its breed"
NOT_PLAIN = "not a plain file"
OUTSIDE = "points outside the archive"
WANTED = "it must be a folder or an archive (.zip, .tar.gz) that holds one folder of photos for each breed"

# Folders beside the photos that data sets are published with. They must hold nothing but _NOTES to be passed over.
_NOTES_FOLDERS = {
    *("annotation", "annotations", "code", "csv", "data", "doc", "docs", "json", "label", "labels", "lists"),
    *("meta", "metadata", "notebooks", "scripts", "splits", "src", "xml"),
}
_NOTES = {
    *("bib", "cff", "csv", "doc", "docx", "htm", "html", "ipynb", "json", "jsonl", "log", "lst", "mat", "md", "names"),
    *("npy", "npz", "parquet", "pbtxt", "pdf", "pkl", "py", "rst", "tsv", "txt", "url", "xls", "xlsx", "xml", "yaml"),
    *("yml",),
}
_ARCHIVES = {
    *("7z", "ace", "arj", "bz2", "cab", "dmg", "gz", "iso", "lz", "lz4", "lzh", "lzma", "rar", "tar", "tbz", "tbz2"),
    *("tgz", "txz", "tzst", "xz", "z", "zip", "zipx", "zst"),
    *(f"{letter}{number:02}" for letter in "rz" for number in range(100)),  # parts of .rar and .zip
}
_FILMS = {"3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "webm", "wmv"}
_RECORDS = {"db", "h5", "hdf5", "lmdb", "mdb", "sqlite", "tfrecord", "tfrecords"}
_DRAWINGS = {"ai", "eps", "svg", "svgz"}
_NO_PHOTOS = _NOTES | _ARCHIVES | _FILMS | _RECORDS | _DRAWINGS
_PHOTOS = {
    *("arw", "avif", "bmp", "cr2", "cr3", "dng", "gif", "heic", "heif", "hif", "jfif", "jpe", "jpeg", "jpg", "jxl"),
    *("nef", "png", "psd", "raw", "tif", "tiff", "webp"),
}
_SPLITS = {
    *("dev", "eval", "evaluation", "holdout", "test", "testing", "train", "training", "val", "valid", "validation"),
}
# What follows is the number of a part: .zip.001, .tfrecord-00000-of-00010.
_ENDING = re.compile(r"((?:\.(?:[a-z][a-z0-9]{0,8}|7z)){1,2})(?:\.\d{3}|-\d+-of-\d+)?$", re.IGNORECASE)
_BREED_AND_NUMBER = re.compile(r"(.*[^\W\d_])[_-]\d+\.\w+")
# Fewer photos beside the breed folders than this, or than this share of the smallest breed, do not stop the run.
_FEWEST = 3
_LEAST_SHARE = 0.1
_DEEPEST = 100
_NAMED_AT_MOST = 10


class Refused(NamedTuple):
    """A file or folder that is left out unread, and why."""

    path: str
    reason: str


class Found(NamedTuple):
    """What a source holds, apart from hidden files; paths have "/" between folders and none at their end.

    Attributes:
        files: paths of plain files.
        folders: path -> why the folder cannot be read, "" if it can; folders of files need not be there.
        refused: what is neither a plain file nor a folder.
        warnings: sentences about the source.
    """

    files: list[str]
    folders: dict[str, str]
    refused: list[Refused]
    warnings: list[str]


class Listing(NamedTuple):
    """What is read from a source.

    Attributes:
        photos: path in the source -> breed, sorted by path.
        refused: files and folders outside the folders of breeds, and what cannot be read; sorted by path.
        warnings: sentences about how the folders were understood.
    """

    photos: dict[str, str]
    refused: list[Refused]
    warnings: list[str]


def find_breeds(data: str, found: Found) -> Listing:
    """Finds the breed folders, also below other folders and in the parts of a set that is split already.

    Args:
        data: address of the source, for messages.
        found: what it holds.

    Raises:
        DataError: there are no photos; a folder that could be a breed gives none; breeds have names that cannot be
            told apart or used.
    """
    if deep := next((path for path in [*found.files, *found.folders] if path.count("/") > _DEEPEST), None):
        raise DataError(f"{data}: {printable(deep[:50])}... is more than {_DEEPEST} folders deep; move it elsewhere")
    layout = _Layout(_tree(found))
    hint = _breeds_in_names(layout) + _other_folders(data, layout)
    if not layout.photos:
        reasons = [*layout.lost, *(f"{printable(path)}: {reason}" for path, reason in sorted(layout.refused))]
        first = "".join(f" ({reason})" for reason in reasons[:1])
        raise DataError(f"{data}: no photos found{first}; {WANTED}{hint}")
    if layout.lost:
        raise DataError(
            f"{data}: folders that could be breeds give no photos:\n{_some(layout.lost)}\n"
            "Put the photos of each breed directly into its folder, and all breed folders into one folder. "
            f"Move folders that are not breeds elsewhere{hint}"
        )
    if hint and len(set(layout.photos.values())) == 1:
        raise DataError(f"{data}: all photos are in one folder; {WANTED}{hint}")
    _check_names(data, set(layout.photos.values()))
    photos, unclear = _without_equal_names(layout.photos)
    breeds = {printable(breed) for breed in photos.values() if printable(breed) != breed}
    escaped = [f"names of breeds are not UTF-8 and are shown with escapes: {', '.join(sorted(breeds))}"] * bool(breeds)
    photos = {path: printable(breed) for path, breed in sorted(photos.items())}
    warnings = [*found.warnings, *layout.warnings, *_left_archives(layout.refused), *escaped]
    return Listing(photos, sorted([*layout.refused, *unclear]), warnings)


@dataclass
class _Folder:
    """A folder of the source: names of its files, and how many files below it may be photos."""

    path: str
    problem: str = ""
    folders: dict[str, "_Folder"] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @cached_property
    def photos(self) -> int:
        return sum(_ending(name) not in _NO_PHOTOS for name in self.files)

    @cached_property
    def below(self) -> int:
        return sum(folder.photos + folder.below for folder in self.folders.values())

    @property
    def inside(self) -> list["_Folder"]:
        """Folders that may be breeds or hold some."""
        return [folder for folder in self.folders.values() if not folder.holds_notes()]

    def holds_notes(self) -> bool:
        """Whether it is one of the folders that data sets have beside their photos."""
        return self.name.casefold() in _NOTES_FOLDERS and self._only_notes()

    def _only_notes(self) -> bool:
        notes = all(_ending(name) in _NOTES for name in self.files) and not (self.refused or self.problem)
        return notes and all(folder._only_notes() for folder in self.folders.values())

    def everything(self) -> Iterator[str]:
        """Paths of all files below it."""
        yield from (f"{self.path}{name}" for name in self.files)
        for folder in self.folders.values():
            yield from folder.everything()


class _Layout:
    """What each folder is.

    Attributes:
        photos: path -> breed.
        refused: as in Listing.
        lost: folders that could be breeds and give no photo, each with what it holds.
        warnings: sentences.
        elsewhere: paths of folders that are no part of the layout, but hold breed folders of their own.
        beside: paths of files outside the breed folders that may be photos.
    """

    def __init__(self, top: _Folder):
        self.photos: dict[str, str] = {}
        self.refused: list[Refused] = []
        self.lost: list[str] = []
        self.warnings: list[str] = []
        self.elsewhere: list[str] = []
        self.beside: list[str] = []
        self._roots = {root.path for root in _roots(top)}
        if len(self._roots) > 1:
            names = ", ".join(repr(printable(path.rstrip("/"))) for path in sorted(self._roots))
            self.warnings.append(
                f"the folders {names} are read as one data set, which is then split by the settings of `split`"
            )
        self._enter(top)
        self._check_parts()
        self._check_files_beside()

    def _check_parts(self) -> None:
        """Of a set that is split already, each part has breeds of the others: test/unknown/1.jpg is no breed."""
        parts = {root: {breed for path, breed in self.photos.items() if path.startswith(root)} for root in self._roots}
        for root, breeds in sorted(parts.items()):
            others = set().union(*(parts[other] for other in parts if other != root))
            if len(parts) > 1 and breeds and others.isdisjoint(breeds):
                names = ", ".join(repr(printable(breed)) for breed in sorted(breeds)[:3])
                self.lost.append(f"{printable(root)}: its folders ({names}) are not in the other parts")
                self.elsewhere.append(root)

    def _check_files_beside(self) -> None:
        """Files outside the breed folders may be a breed; such as README, without the ending of a photo, seldom are."""
        photos = sum(_ending(path) in _PHOTOS for path in self.beside)
        smallest = min(Counter(self.photos.values()).values(), default=0)
        first = ", ".join([*map(printable, sorted(self.beside)[:3]), *["..."] * (len(self.beside) > 3)])
        files = f"{len(self.beside)} files outside the breed folders"
        if photos >= max(_FEWEST, _LEAST_SHARE * smallest) or len(self.beside) >= max(_FEWEST, smallest):
            self.lost.append(f"{files}: {first}")
        elif photos >= _FEWEST:
            self.warnings.append(f"{files} are left out: {first}")

    def _enter(self, folder: _Folder) -> None:
        """Goes through a folder that holds the breed folders, or is above it."""
        is_root = folder.path in self._roots
        below = [child for child in folder.folders.values() if not is_root and self._leads_to_root(child)]
        are_splits = len(below) > 0 and all(_is_split(child.name) for child in folder.inside)
        for child in folder.folders.values():
            if child in below:
                self._enter(child)
            elif child.holds_notes():
                self._refuse(child, f"not a breed: {_contents(child)}")
            elif is_root:
                self._breed(child)
            elif are_splits and not child.problem:
                self._refuse(child, f"no breed folders: {_contents(child)}")
                self.warnings.append(f"{printable(child.path)} is left out: it has no breed folders")
            else:
                self._lose(child)
        self._left_out(folder)
        self.beside += [f"{folder.path}{name}" for name in folder.files if _ending(name) not in _NO_PHOTOS]
        for path, reason in folder.refused:
            is_named_like_a_file = _ending(path) in _PHOTOS | _NO_PHOTOS
            if reason == OUTSIDE and _ending(path) not in _NO_PHOTOS:
                self.beside.append(path)
            elif reason in (LINK, LINK_AGAIN, LINK_TO_NOTHING, NOT_PLAIN) and not is_named_like_a_file:
                self.lost.append(f"{printable(path)}: {reason}")

    def _leads_to_root(self, folder: _Folder) -> bool:
        return any(root.startswith(folder.path) for root in self._roots)

    def _breed(self, folder: _Folder) -> None:
        if folder.problem or not folder.photos:
            self._lose(folder)
            return
        archives = [name for name in folder.files if may_be_archive(name)]
        self.photos |= {f"{folder.path}{name}": folder.name for name in folder.files if name not in archives}
        self.refused += [*folder.refused, *(Refused(f"{folder.path}{name}", ARCHIVE) for name in archives)]
        for nested in folder.folders.values():
            if nested.holds_notes():
                self._refuse(nested, f"not a breed: {_contents(nested)}")
            elif nested.photos + nested.below:
                self._lose(nested)
            else:
                self._leave_out_all(nested)

    def _lose(self, folder: _Folder) -> None:
        self.lost.append(f"{printable(folder.path)}: {_contents(folder)}")
        if folder.below > folder.photos:
            roots = [root for root in _roots(folder) if not _is_only_parts(root)]
            self.elsewhere += [root.path for root in roots if sum(child.photos > 0 for child in root.inside) > 1]

    def _refuse(self, folder: _Folder, reason: str) -> None:
        self.refused.append(Refused(folder.path, reason))

    def _leave_out_all(self, folder: _Folder) -> None:
        if folder.problem:
            self._refuse(folder, folder.problem)
        self._left_out(folder)
        for child in folder.folders.values():
            self._leave_out_all(child)

    def _left_out(self, folder: _Folder) -> None:
        for name in folder.files:
            reason = ARCHIVE if may_be_archive(name) else "not directly in the folder of a breed"
            self.refused.append(Refused(f"{folder.path}{name}", reason))
        self.refused += folder.refused


def _roots(folder: _Folder) -> list[_Folder]:
    """The folders that hold breed folders: single folders of folders are entered, and so are train, val and test."""
    holders = [child for child in folder.inside if child.below > child.photos]
    if holders and all(_is_split(child.name) for child in folder.inside):
        roots = [root for holder in holders for root in _roots(holder)]
        return [root for root in roots if not _is_only_parts(root)] or [folder]
    if len(holders) == 1 and not any(child.photos for child in folder.inside if child is not holders[0]):
        return _roots(holders[0])
    return [folder]


def _is_only_parts(folder: _Folder) -> bool:
    return all(_is_split(child.name) for child in folder.inside)


def _is_split(name: str) -> bool:
    """Whether words of the name say that it is a part of a set that is split already."""
    return not _SPLITS.isdisjoint(re.split(r"[\W_\d]+", name.casefold()))


def _tree(found: Found) -> _Folder:
    top = _Folder("")

    def folder_at(path: str) -> _Folder:
        folder = top
        for name in filter(None, path.split("/")):
            folder = folder.folders.setdefault(name, _Folder(f"{folder.path}{name}/"))
        return folder

    for path, problem in sorted(found.folders.items()):
        folder_at(path).problem = problem
    for path in sorted(found.files):
        above, _, name = path.rpartition("/")
        folder_at(above).files.append(name)
    for refused in sorted(found.refused):
        above = "" if refused.reason == OUTSIDE else refused.path.rstrip("/").rpartition("/")[0]
        folder_at(above).refused.append(refused)
    return top


def _ending(name: str) -> str:
    """The last part of a file's name, without the dot and in small letters."""
    ending = _ENDING.search(name)
    return ending[1].rpartition(".")[2].lower() if ending else ""


def may_be_archive(name: str) -> bool:
    """Whether the name ends like that of an archive, or of a part of one."""
    return _ending(name) in _ARCHIVES


def _contents(folder: _Folder) -> str:
    """What a folder holds, in a few words."""
    if folder.problem:
        return folder.problem
    endings = (_ENDING.search(name) for name in folder.files)
    kinds = Counter((f"{match[0].lower()} file" if match else "file", "") for match in endings)
    kinds.update(("file", f" ({reason})") for _, reason in folder.refused)
    parts = [f"{counted(number, noun)}{reason}" for (noun, reason), number in kinds.most_common(3)]
    if folder.folders:
        names = ", ".join([*(repr(printable(name)) for name in list(folder.folders)[:3]), "..."][: len(folder.folders)])
        files = sum(1 for child in folder.folders.values() for _ in child.everything())
        parts.append(f"{counted(len(folder.folders), 'folder')} with {counted(files, 'file')} ({names})")
    unpack = "; unpack archives" if any(may_be_archive(path) for path in folder.everything()) else ""
    return "holds " + (", ".join(parts) or "nothing") + unpack


def _other_folders(data: str, layout: _Layout) -> str:
    """A hint at the folders that would do."""
    if not layout.elsewhere:
        return ""
    places = " or ".join(printable(path.rstrip("/")) for path in layout.elsewhere[:3])
    return f". Breed folders are in {places}: if those are meant, pass that folder (of an archive, unpack it first)"


def _breeds_in_names(layout: _Layout) -> str:
    """A hint if all photos are in one folder, and their names say of which breed they are."""
    paths = sorted([*layout.beside, *layout.photos]) if len(set(layout.photos.values())) < 2 else []
    named = {path: match[1] for path in paths if (match := _BREED_AND_NUMBER.fullmatch(path.rpartition("/")[2]))}
    if len(set(named.values())) < 2 or len(named) < len(paths) / 2:
        return ""
    return (
        f". Names like {printable(next(iter(named)))} seem to begin with the breed: move the photos of each breed to a "
        "folder of its own. For Oxford-IIIT Pet, `catbreeds data oxford FOLDER` makes these folders"
    )


def _left_archives(refused: list[Refused]) -> list[str]:
    paths = sorted(printable(path) for path, reason in refused if reason == ARCHIVE)
    if not paths:
        return []
    names = ", ".join([*paths[:3], *["..."] * (len(paths) > 3)])
    return [f"{counted(len(paths), 'archive')} left out ({names}): if there are photos inside, unpack them"]


def _check_names(data: str, breeds: set[str]) -> None:
    if unusable := sorted(breed for breed in breeds if not spelling(breed) or not is_one_line(breed)):
        names = ", ".join(map(ascii, unusable))
        raise DataError(
            f"{data}: a breed cannot have the name {names}: rename the folder, with visible characters and without "
            "control characters"
        )
    if len(breeds) > 1 and all(map(_is_split, breeds)):
        names = ", ".join(map(repr, sorted(breeds)))
        raise DataError(f"{data}: {names} are parts of a set and have no folders of breeds; {WANTED}")
    printed = {breed: printable(breed) for breed in breeds}
    twice = [[breed for breed in sorted(breeds) if printed[breed] == name] for name in sorted(set(printed.values()))]
    if groups := [*spelling_variants(printed.values()), *(group for group in twice if len(group) > 1)]:
        raise DataError(
            f"{data}: folders of breeds have the same name in two spellings:\n"
            f"{_some([distinguishable(group) for group in groups])}\n"
            "Put the photos of each breed into one folder"
        )


def _without_equal_names(photos: dict[str, str]) -> tuple[dict[str, str], list[Refused]]:
    """Reports know photos by their printable paths: of photos with the same one, the first is kept."""
    kept, taken, refused = {}, set(), []
    for path, breed in sorted(photos.items()):
        if printable(path) in taken:
            refused.append(Refused(path, "its name is shown like that of another file; rename it"))
        else:
            taken.add(printable(path))
            kept[path] = breed
    return kept, refused


def _some(lines: list[str]) -> str:
    more = len(lines) - _NAMED_AT_MOST
    return "\n".join(f"  {line}" for line in [*lines[:_NAMED_AT_MOST], *([f"... and {more} more"] if more > 0 else [])])
