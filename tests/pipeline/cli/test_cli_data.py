"""`catbreeds data`: from a server that fails in every way, either the photos come as published, or it says why not."""

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
    another_range,
    behave,
    corrupted,
    cut_after,
    range_ignored,
    said_longer,
    said_shorter,
    serving,
    stalled_after,
    status,
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
OTHERS = [("images/great_pyrenees_5.jpg", b"a dog"), ("images/Abyssinian_3.mat", b""), ("images/Abyssinian_9.jpg", b"")]


@pytest.fixture
def server():
    with serving() as state:
        state.files["/annotations.tar.gz"] = tarred(("annotations/list.txt", LIST.encode()))
        state.files[IMAGES] = tarred(*PUBLISHED, *OTHERS)
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
    """The official client, told that Kaggle is at http://localhost and that our server is the way there."""
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

    server.answers[f"{API}/GetDataset"] = [describe] * 20
    server.answers[f"{API}/DownloadDataset"] = [redirect] * 20
    proxy = {"http_proxy": server.address, "no_proxy": "", "NO_PROXY": "", "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}

    def call(*options: str, token: str | None = "a token", **variables: str) -> subprocess.CompletedProcess:
        credentials = {"KAGGLE_API_TOKEN": token} if token else {}
        command = [CATBREEDS, "data", "kaggle", tmp_path / "kaggle cats", *options]
        return fork_server.run(command, env=environment | proxy | credentials | variables)

    call.out = tmp_path / "kaggle cats"
    return call


def laid(out: Path) -> dict[str, bytes]:
    """What lies there and is not hidden."""
    files = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes() for name, path in files.items() if not any(p.startswith(".") for p in name.parts)
    }


def assert_laid(done: subprocess.CompletedProcess, out: Path, files: dict[str, bytes] = CATS) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert laid(out) == files
    assert f"{out}: 3 photos in 2 folders, " in done.stdout
    assert not (out / ".download").exists()
    assert "\x1b" not in done.stdout + done.stderr


def assert_failed(done: subprocess.CompletedProcess, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.stdout == ""


def test_the_cats_of_oxford_are_laid_out_as_ingestion_reads_them_and_the_second_time_nothing_is_fetched(oxford, server):
    assert_laid(oxford(), oxford.out)
    from components.ingestion.photo_source import list_photos, open_source

    listing = list_photos(open_source(str(oxford.out)))
    assert listing.photos == {name: name.split("/")[0] for name in CATS}
    assert listing.refused == []
    server.requests.clear()
    again = oxford()
    assert_laid(again, oxford.out)
    assert "all there already" in again.stdout
    assert server.requests == []


def test_a_line_that_breaks_again_and_again_costs_no_byte_twice(oxford, server):
    size = len(server.files[IMAGES])
    server.answers[IMAGES] = [cut_after(600_000) for _ in range(size // 600_000)]
    done = oxford("--tries", 1)
    assert_laid(done, oxford.out)
    assert server.ranges(IMAGES) == [None, *(f"bytes={start}-" for start in range(600_000, size, 600_000))]
    assert f"images.tar.gz: {size / 1e6:.1f} MB" in done.stderr
    assert "going on at 0.6 MB" in done.stderr


@pytest.mark.parametrize(
    ("answers", "fetched_anew"),
    [
        (
            [
                status(503),
                cut_after(30_000),
                another_range,
                cut_after(0),
                status(429),
                cut_after(40_000),
                range_ignored,
            ],
            False,
        ),
        ([said_longer], False),
        ([cut_after(30_000), corrupted], True),
        ([said_shorter], True),
    ],
    ids=["cut and refused", "said longer", "corrupted", "said shorter"],
)
def test_what_goes_wrong_once_is_made_good(oxford, server, answers, fetched_anew):
    server.answers[IMAGES] = [*answers]
    done = oxford()
    assert_laid(done, oxford.out)
    assert server.answers[IMAGES] == []
    assert ("came damaged" in done.stderr) == fetched_anew


@pytest.mark.parametrize(
    ("answer", "requests", "said"),
    [
        (corrupted, 2, "images.tar.gz: what came has the wrong MD5, twice"),
        (status(404), 1, "images.tar.gz: the server answers 404 Not Found"),
        (status(503), 3, "images.tar.gz: the server answers 503 Service Unavailable"),
        (cut_after(0), 3, "images.tar.gz: broke off"),
    ],
)
def test_what_stays_wrong_is_said_and_nothing_is_laid(oxford, server, answer, requests, said):
    server.answers[IMAGES] = [answer] * 20
    assert_failed(oxford("--tries", 3), 1, said, "Run again to go on", "say --archives FOLDER")
    assert len(server.ranges(IMAGES)) == requests
    assert laid(oxford.out) == {}


def test_a_download_that_was_killed_goes_on_where_it_was(oxford, server):
    released = threading.Event()
    server.answers[IMAGES] = [stalled_after(60_000, released)]
    process = subprocess.Popen(oxford.command(), env=oxford.environment)
    try:
        part = oxford.out / ".download" / "images.tar.gz.part"
        end = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == 60_000):
            assert time.monotonic() < end
            time.sleep(0.05)
        second = oxford()
        assert_failed(second, 2, "another download is at work there")
    finally:
        process.kill()
        process.wait()
        released.set()
    assert_laid(oxford(), oxford.out)
    assert server.ranges(IMAGES) == [None, "bytes=60000-"]


def test_without_internet_it_says_so_and_archives_that_were_brought_serve_and_stay(oxford, server, tmp_path):
    offline = ["--url", "http://127.0.0.1:9", "--tries", 1]
    assert_failed(oxford(*offline), 1, "annotations.tar.gz: cannot be reached", "say --archives FOLDER")
    brought = tmp_path / "brought"
    brought.mkdir()
    for name, content in server.files.items():
        (brought / name[1:]).write_bytes(content)
    assert_laid(oxford(*offline, "--archives", brought), oxford.out)
    assert {path.name for path in brought.iterdir()} == {"annotations.tar.gz", "images.tar.gz"}
    assert server.requests == []


def test_an_archive_that_was_brought_and_is_another_one_is_named_and_kept(oxford, tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(b"mine")
    assert_failed(oxford("--archives", tmp_path), 1, f"{tmp_path / 'images.tar.gz'}: not the file that", "move it away")
    assert (tmp_path / "images.tar.gz").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../evil.jpg", b"x"), *PUBLISHED], "could write elsewhere"),
        ([("images/../../../evil.jpg", b"x"), *PUBLISHED], "could write elsewhere"),
        ([link("images/Abyssinian_3.jpg", "/etc/passwd"), *PUBLISHED], "could write elsewhere"),
        (
            [link("images/Abyssinian_3.jpg", "great_pyrenees_5.jpg"), *PUBLISHED[:2]],
            "1 photos that the annotations name",
        ),
        (PUBLISHED[1:], "1 photos that the annotations name are not in it: Maine Coon/Maine_Coon_1.jpg"),
    ],
)
def test_an_archive_that_reaches_outside_or_lacks_photos_is_refused(oxford, server, tmp_path, members, said):
    server.files[IMAGES] = tarred(*members)
    assert_failed(oxford(), 2, "images.tar.gz: ", said)
    assert not list(tmp_path.rglob("evil.jpg"))
    assert laid(oxford.out).items() <= CATS.items()


def test_annotations_of_another_kind_are_refused(oxford, server):
    server.files["/annotations.tar.gz"] = tarred(("annotations/list.txt", b"../../Evil_1 1 1 1\n"))
    assert_failed(oxford(), 2, "not the list of photos that was expected")


def test_photos_of_ones_own_stay_and_one_in_the_way_is_named(oxford):
    own = {"Maine Coon/mine.jpg": b"mine", "Tabby/1.jpg": b"mine, too"}
    for name, content in (own | {"Maine Coon/Maine_Coon_1.jpg": b"another"}).items():
        (oxford.out / name).parent.mkdir(parents=True, exist_ok=True)
        (oxford.out / name).write_bytes(content)
    assert_failed(oxford(), 2, f"{oxford.out / 'Maine Coon/Maine_Coon_1.jpg'}: another file of that name is in the way")
    assert (oxford.out / "Maine Coon/Maine_Coon_1.jpg").read_bytes() == b"another"
    (oxford.out / "Maine Coon/Maine_Coon_1.jpg").unlink()
    assert_laid(oxford(), oxford.out, CATS | own)


def test_what_changed_since_is_named_and_what_is_gone_is_brought_back(oxford):
    assert_laid(oxford(), oxford.out)
    changed = oxford.out / "Abyssinian" / "Abyssinian_3.jpg"
    changed.write_bytes(b"changed")
    assert_failed(oxford(), 2, f"{changed}: not the file that was downloaded; move it away and run again")
    changed.unlink()
    assert_laid(oxford(), oxford.out)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--md5", "images.tar.gz=0"], "--md5 images.tar.gz=0: write FILE=MD5"),
        (["--url", "ftp://example.org"], "--url ftp://example.org: must begin with http:// or https://"),
    ],
)
def test_a_wrong_option_is_refused_in_words(oxford, options, said):
    assert_failed(oxford(*options), 2, said)


def test_without_credentials_kaggle_is_not_asked_and_it_is_said_how_to_get_them(kaggle, server):
    done = kaggle(token=None)
    assert_failed(done, 2, "no Kaggle credentials", "https://www.kaggle.com/settings/api", "KAGGLE_API_TOKEN", HANDLE)
    assert server.requests == []
    assert not kaggle.out.exists()


@pytest.mark.parametrize("hashed", [True, False], ids=["with MD5", "without MD5"])
def test_the_data_set_of_kaggle_comes_though_the_line_breaks_and_bytes_are_damaged(kaggle, server, hashed):
    if not hashed:
        server.headers.clear()
    server.answers["/stored.zip"] = [cut_after(3_000_000), behave, corrupted, cut_after(2_500_000)]
    files = {f"CatBreedsRefined-v2/{name}": content for name, content in CATS.items()}
    done = kaggle()
    assert_laid(done, kaggle.out, files)
    for text in ("broke off", "going on at 2.1 MB", "the archive came damaged"):
        assert text in done.stderr
    assert f"bytes={2 * 2**20}-" in server.ranges("/stored.zip")
    from components.ingestion.photo_source import list_photos, open_source

    assert set(list_photos(open_source(str(kaggle.out))).photos.values()) == {"Maine Coon", "Abyssinian"}
    server.requests.clear()
    assert "all there already" in kaggle(token=None).stdout
    assert server.requests == []


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        (401, 2, "Kaggle refuses these credentials (401). Make a new token at https://www.kaggle.com/settings/api"),
        (404, 2, "Kaggle has no such data set; say --dataset owner/name"),
        (503, 1, "Kaggle answers 503. Run again to go on"),
    ],
)
def test_a_refusal_of_kaggle_is_told_in_words(kaggle, server, code, exit_code, said):
    server.answers[f"{API}/GetDataset"] = [status(code)] * 20
    assert_failed(kaggle("--tries", "1"), exit_code, said)


def test_an_archive_of_kaggle_that_stays_damaged_is_said_and_nothing_is_laid(kaggle, server):
    server.answers["/stored.zip"] = [corrupted] * 20
    assert_failed(kaggle("--tries", "2"), 1, f"{HANDLE}: the archive came damaged", "Run again to go on")
    assert laid(kaggle.out) == {}


PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "no_proxy", "NO_PROXY"), "")


def test_archives_on_this_machine_are_not_fetched_through_a_proxy(oxford):
    oxford.environment.update(PROXIES | {"http_proxy": "http://127.0.0.1:9"})
    assert oxford("--tries", "1").returncode == 0


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://127.0.0.1:9", "ALL_PROXY=socks5://127.0.0.1:9: this proxy cannot be used"),
        ("http://127.0.0.1:9", "cannot be reached (through the proxy ALL_PROXY=http://127.0.0.1:9)"),
    ],
)
def test_a_proxy_that_keeps_photos_from_coming_is_named(oxford, kaggle, proxy, said):
    oxford.environment.update(PROXIES | {"ALL_PROXY": proxy})
    assert_failed(oxford("--tries", "1", "--url", "http://cats.invalid"), 1, said)
    if "socks5" in proxy:
        assert_failed(kaggle("--tries", "1", **PROXIES | {"ALL_PROXY": proxy}), 1, said)


def test_kaggle_out_of_reach_is_said(kaggle):
    done = kaggle("--tries", "1", http_proxy="http://127.0.0.1:9")
    assert_failed(done, 1, "cannot be reached", "Without internet, download the zip at", "run --data FILE.zip")


def test_a_handle_that_is_none_is_refused(kaggle):
    assert_failed(kaggle("--dataset", "cats"), 2, "cats: no data set's name; write owner/name")
