"""`catbreeds data` with a failing server: the command writes the photos as published, or reports the cause."""

import base64
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tests import fork_server
from tests.pipeline.flaky_server import (
    content_length_too_large,
    content_length_too_small,
    corrupted,
    cut_after,
    range_ignored,
    send_file,
    serving,
    stall_after,
    status,
    wrong_range,
)
from tests.running import CATBREEDS

CATS = {
    "Maine Coon/Maine_Coon_1.jpg": random.Random(1).randbytes(2_000_000),
    "Maine Coon/Maine_Coon_20.jpg": random.Random(2).randbytes(50_000),
    "Abyssinian/Abyssinian_3.jpg": random.Random(3).randbytes(2_000_000),
}
LIST = """#Image CLASS-ID SPECIES BREED ID
#SPECIES: 1:Cat 2:Dog
Abyssinian_3 1 1 1
Maine_Coon_1 20 1 7
Maine_Coon_20 20 1 7
great_pyrenees_5 16 2 10
"""
IMAGES = "/images.tar.gz"
HANDLE = "doctrinek/catbreedsrefined-7k"
API = "/api/v1/datasets.DatasetApiService"


def tarred(*members: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info, b""


PUBLISHED = [(f"images/{name.split('/')[1]}", content) for name, content in CATS.items()]
UNUSED_MEMBERS = [
    ("images/great_pyrenees_5.jpg", b"a dog"),
    ("images/Abyssinian_3.mat", b""),
    ("images/Abyssinian_9.jpg", b""),
]


@pytest.fixture
def server():
    with serving() as state:
        state.files["/annotations.tar.gz"] = tarred(("annotations/list.txt", LIST.encode()))
        state.files[IMAGES] = tarred(*PUBLISHED, *UNUSED_MEMBERS)
        yield state


@pytest.fixture
def environment(tmp_path):
    kept = {
        k: v for k, v in os.environ.items() if not k.lower().startswith(("catbreeds_", "kaggle")) and "proxy" not in k
    }
    home = tmp_path / "home"
    home.mkdir()
    return {**kept, "HOME": str(home), "COLUMNS": "200"}


@pytest.fixture
def oxford(server, tmp_path, environment):
    def command(*options: object) -> list[str]:
        sums = [f"{n[1:]}={hashlib.md5(content).hexdigest()}" for n, content in server.files.items()]
        arguments = ["--url", server.address, "--md5", sums[0], "--md5", sums[1], *options]
        return [str(CATBREEDS), "data", "oxford", str(tmp_path / "some cats"), *map(str, arguments)]

    def call(*options: object) -> subprocess.CompletedProcess:
        return fork_server.run(command(*options), env=environment)

    call.command, call.out, call.environment = command, tmp_path / "some cats", environment
    return call


@pytest.fixture
def kaggle(server, tmp_path, environment):
    """Run `catbreeds data kaggle`; kagglehub connects to http://localhost, with the test server as its proxy."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in CATS.items():
            archive.writestr(f"CatBreedsRefined-v2/{name}", content)
    server.files["/stored.zip"] = content = packed.getvalue()
    server.files[f"{API}/GetDataset"] = b""
    server.files[f"{API}/DownloadDataset"] = b""
    digest = base64.b64encode(hashlib.md5(content).digest()).decode()
    server.headers["/stored.zip"] = {"x-goog-hash": f"crc32c=AAAAAA==,md5={digest}"}

    def describe(handler, _):
        body = json.dumps({"currentVersionNumber": 2}).encode()
        handler.head(200, len(body), Content_Type="application/json")
        handler.wfile.write(body)

    def redirect(handler, _):
        handler.head(302, 0, Location=f"{server.address}/stored.zip")

    server.responses[f"{API}/GetDataset"] = [describe] * 20
    server.responses[f"{API}/DownloadDataset"] = [redirect] * 20
    proxy = {"http_proxy": server.address, "no_proxy": "", "NO_PROXY": "", "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}

    def call(*options: str, token: str | None = "a token", **variables: str) -> subprocess.CompletedProcess:
        credentials = {"KAGGLE_API_TOKEN": token} if token else {}
        command = [CATBREEDS, "data", "kaggle", tmp_path / "kaggle cats", *options]
        return fork_server.run(command, env=environment | proxy | credentials | variables)

    call.out = tmp_path / "kaggle cats"
    return call


def visible_files(out: Path) -> dict[str, bytes]:
    """Path -> content of every file in the folder that is not hidden."""
    files = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes() for name, path in files.items() if not any(p.startswith(".") for p in name.parts)
    }


def assert_complete(done: subprocess.CompletedProcess, out: Path, files: dict[str, bytes] = CATS) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert visible_files(out) == files
    assert f"{out}: 3 photos in 2 folders, " in done.stdout
    assert not (out / ".download").exists()
    assert "\x1b" not in done.stdout + done.stderr


def assert_failed(done: subprocess.CompletedProcess, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.stdout == ""


def test_oxford_cats_are_written_in_the_layout_of_ingestion_and_a_second_call_downloads_nothing(oxford, server):
    assert_complete(oxford(), oxford.out)
    from components.ingestion.photo_source import list_photos, open_source

    listing = list_photos(open_source(str(oxford.out)))
    assert listing.photos == {name: name.split("/")[0] for name in CATS}
    assert listing.excluded == []
    server.requests.clear()
    again = oxford()
    assert_complete(again, oxford.out)
    assert "already complete" in again.stdout
    assert server.requests == []


def test_a_download_over_an_unstable_connection_transfers_no_byte_twice(oxford, server):
    size = len(server.files[IMAGES])
    server.responses[IMAGES] = [cut_after(600_000) for _ in range(size // 600_000)]
    done = oxford("--tries", 1)
    assert_complete(done, oxford.out)
    assert server.ranges(IMAGES) == [None, *(f"bytes={start}-" for start in range(600_000, size, 600_000))]
    assert f"images.tar.gz: {size / 1e6:.1f} MB" in done.stderr
    assert "resuming at 0.6 MB" in done.stderr


@pytest.mark.parametrize(
    ("responses", "starts_again"),
    [
        (
            [
                status(503),
                cut_after(30_000),
                wrong_range,
                cut_after(0),
                status(429),
                cut_after(40_000),
                range_ignored,
            ],
            False,
        ),
        ([content_length_too_large], False),
        ([cut_after(30_000), corrupted], True),
        ([content_length_too_small], True),
    ],
    ids=["truncated and rejected", "Content-Length too large", "corrupted", "Content-Length too small"],
)
def test_the_download_recovers_from_temporary_failures(oxford, server, responses, starts_again):
    server.responses[IMAGES] = [*responses]
    done = oxford()
    assert_complete(done, oxford.out)
    assert server.responses[IMAGES] == []
    assert ("the download was corrupt; starting again" in done.stderr) == starts_again


@pytest.mark.parametrize(
    ("response", "requests", "message"),
    [
        (corrupted, 2, "images.tar.gz: the download was corrupt twice (MD5 is "),
        (status(404), 1, "images.tar.gz: the server returned 404 Not Found"),
        (status(503), 3, "images.tar.gz: the server returned 503 Service Unavailable"),
        (cut_after(0), 3, "images.tar.gz: connection lost"),
    ],
)
def test_a_permanent_failure_is_reported_and_no_photo_is_written(oxford, server, response, requests, message):
    server.responses[IMAGES] = [response] * 20
    assert_failed(oxford("--tries", 3), 1, message, "Rerun the command to resume", "pass --archives FOLDER")
    assert len(server.ranges(IMAGES)) == requests
    assert visible_files(oxford.out) == {}


def test_a_killed_download_resumes_when_the_command_is_rerun(oxford, server):
    released = threading.Event()
    server.responses[IMAGES] = [stall_after(60_000, released)]
    process = subprocess.Popen(oxford.command(), env=oxford.environment)
    try:
        part = oxford.out / ".download" / "images.tar.gz.part"
        end = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == 60_000):
            assert time.monotonic() < end
            time.sleep(0.05)
        second = oxford()
        assert_failed(second, 2, "another download is in progress")
    finally:
        process.kill()
        process.wait()
        released.set()
    assert_complete(oxford(), oxford.out)
    assert server.ranges(IMAGES) == [None, "bytes=60000-"]


def test_without_internet_the_message_suggests_local_archives_which_are_used_and_kept(oxford, server, tmp_path):
    offline = ["--url", "http://127.0.0.1:9", "--tries", 1]
    assert_failed(oxford(*offline), 1, "annotations.tar.gz: cannot connect", "pass --archives FOLDER")
    archives = tmp_path / "archives"
    archives.mkdir()
    for name, content in server.files.items():
        (archives / name[1:]).write_bytes(content)
    assert_complete(oxford(*offline, "--archives", archives), oxford.out)
    assert {path.name for path in archives.iterdir()} == {"annotations.tar.gz", "images.tar.gz"}
    assert server.requests == []


def test_a_local_archive_with_the_wrong_checksum_is_reported_and_kept(oxford, tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(b"mine")
    message = f"{tmp_path / 'images.tar.gz'}: not the expected file"
    assert_failed(oxford("--archives", tmp_path), 1, message, "move it away")
    assert (tmp_path / "images.tar.gz").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../evil.jpg", b"x"), *PUBLISHED], "a member outside its folder"),
        ([("images/../../../evil.jpg", b"x"), *PUBLISHED], "a member outside its folder"),
        ([link("images/Abyssinian_3.jpg", "/etc/passwd"), *PUBLISHED], "a member outside its folder"),
        (
            [link("images/Abyssinian_3.jpg", "great_pyrenees_5.jpg"), *PUBLISHED[:2]],
            "1 photos listed in the annotations are missing",
        ),
        (PUBLISHED[1:], "1 photos listed in the annotations are missing: Maine Coon/Maine_Coon_1.jpg"),
    ],
)
def test_an_archive_with_outside_members_or_missing_photos_is_rejected(oxford, server, tmp_path, members, message):
    server.files[IMAGES] = tarred(*members)
    assert_failed(oxford(), 2, "images.tar.gz: ", message)
    assert not list(tmp_path.rglob("evil.jpg"))
    assert visible_files(oxford.out).items() <= CATS.items()


def test_unexpected_annotations_are_rejected(oxford, server):
    server.files["/annotations.tar.gz"] = tarred(("annotations/list.txt", b"../../Evil_1 1 1 1\n"))
    assert_failed(oxford(), 2, "annotations/list.txt is not the expected list of photos")


def test_other_photos_are_kept_and_a_conflicting_photo_is_reported(oxford):
    own = {"Maine Coon/mine.jpg": b"mine", "Tabby/1.jpg": b"mine, too"}
    for name, content in (own | {"Maine Coon/Maine_Coon_1.jpg": b"another"}).items():
        (oxford.out / name).parent.mkdir(parents=True, exist_ok=True)
        (oxford.out / name).write_bytes(content)
    assert_failed(oxford(), 2, f"{oxford.out / 'Maine Coon/Maine_Coon_1.jpg'}: a different file has this name")
    assert (oxford.out / "Maine Coon/Maine_Coon_1.jpg").read_bytes() == b"another"
    (oxford.out / "Maine Coon/Maine_Coon_1.jpg").unlink()
    assert_complete(oxford(), oxford.out, CATS | own)


def test_a_changed_photo_is_reported_and_a_deleted_photo_is_restored(oxford):
    assert_complete(oxford(), oxford.out)
    changed = oxford.out / "Abyssinian" / "Abyssinian_3.jpg"
    changed.write_bytes(b"changed")
    assert_failed(oxford(), 2, f"{changed}: changed since the download; move it away and rerun the command")
    changed.unlink()
    assert_complete(oxford(), oxford.out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--md5", "images.tar.gz=0"], "--md5 images.tar.gz=0: must be FILE=MD5"),
        (["--url", "ftp://example.org"], "--url ftp://example.org: must begin with http:// or https://"),
    ],
)
def test_an_invalid_option_is_rejected_with_a_message(oxford, options, message):
    assert_failed(oxford(*options), 2, message)


def test_without_credentials_no_request_is_sent_and_the_message_explains_how_to_get_them(kaggle, server):
    done = kaggle(token=None)
    assert_failed(done, 2, "no Kaggle credentials", "https://www.kaggle.com/settings/api", "KAGGLE_API_TOKEN", HANDLE)
    assert server.requests == []
    assert not kaggle.out.exists()


@pytest.mark.parametrize("hashed", [True, False], ids=["with MD5", "without MD5"])
def test_a_kaggle_download_recovers_from_broken_connections_and_corrupt_data(kaggle, server, hashed):
    if not hashed:
        server.headers.clear()
    server.responses["/stored.zip"] = [cut_after(3_000_000), send_file, corrupted, cut_after(2_500_000)]
    files = {f"CatBreedsRefined-v2/{name}": content for name, content in CATS.items()}
    done = kaggle()
    assert_complete(done, kaggle.out, files)
    for text in ("connection lost", "resuming at 2.1 MB", "the archive is corrupt"):
        assert text in done.stderr
    assert f"bytes={2 * 2**20}-" in server.ranges("/stored.zip")
    from components.ingestion.photo_source import list_photos, open_source

    assert set(list_photos(open_source(str(kaggle.out))).photos.values()) == {"Maine Coon", "Abyssinian"}
    server.requests.clear()
    assert "already complete" in kaggle(token=None).stdout
    assert server.requests == []


@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        (401, 2, "Kaggle rejects these credentials (401). Create a new token at https://www.kaggle.com/settings/api"),
        (404, 2, "no such data set on Kaggle; pass --dataset owner/name"),
        (503, 1, "Kaggle returned 503. Rerun the command to resume"),
    ],
)
def test_an_error_response_of_kaggle_is_reported(kaggle, server, code, exit_code, message):
    server.responses[f"{API}/GetDataset"] = [status(code)] * 20
    assert_failed(kaggle("--tries", "1"), exit_code, message)


def test_a_permanently_corrupt_kaggle_archive_is_reported_and_no_photo_is_written(kaggle, server):
    server.responses["/stored.zip"] = [corrupted] * 20
    assert_failed(kaggle("--tries", "2"), 1, f"{HANDLE}: the archive is corrupt", "Rerun the command to resume")
    assert visible_files(kaggle.out) == {}


PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "no_proxy", "NO_PROXY"), "")


def test_archives_on_this_machine_are_downloaded_without_a_proxy(oxford):
    oxford.environment.update(PROXIES | {"http_proxy": "http://127.0.0.1:9"})
    assert oxford("--tries", "1").returncode == 0


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks5://127.0.0.1:9", "ALL_PROXY=socks5://127.0.0.1:9: this proxy cannot be used"),
        ("http://127.0.0.1:9", "cannot connect (through the proxy ALL_PROXY=http://127.0.0.1:9)"),
    ],
)
def test_the_error_of_a_failed_download_names_the_proxy(oxford, kaggle, proxy, message):
    oxford.environment.update(PROXIES | {"ALL_PROXY": proxy})
    assert_failed(oxford("--tries", "1", "--url", "http://cats.invalid"), 1, message)
    if "socks5" in proxy:
        assert_failed(kaggle("--tries", "1", **PROXIES | {"ALL_PROXY": proxy}), 1, message)


def test_a_failed_connection_to_kaggle_is_reported(kaggle):
    done = kaggle("--tries", "1", http_proxy="http://127.0.0.1:9")
    assert_failed(done, 1, "cannot connect", "Without internet access, download the zip at", "run --data FILE.zip")


def test_an_invalid_handle_is_rejected(kaggle):
    assert_failed(kaggle("--dataset", "cats"), 2, "cats: not the name of a data set; must be owner/name")
