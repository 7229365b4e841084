"""Downloading against a local server that interrupts, forgets and lies."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shiftnorm.data import download as module
from shiftnorm.data.download import DownloadError, download
from shiftnorm.data.sources import SOURCES, download_dataset

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at several addresses, each with a fault of its own, and notes what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.drops = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_GET(self) -> None:
        path, wanted = self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append((path, wanted))
        content = CONTENT[::-1] if path == "wrong" else CONTENT
        if path in ("404", "503"):
            self.send_error(int(path))
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and path != "norange" else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if path == "shifted" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if path == "drops" and self.server.drops < 2:
            # A third of the file, then the line goes dead.
            self.server.drops += 1
            rest = rest[: len(content) // 3]
        self.wfile.write(rest)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)


def test_a_plain_download(server: Server, tmp_path: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    target = download(
        [server.url("file")],
        tmp_path / "new" / "a.tar",
        checksum=MD5.upper(),
        on_progress=lambda got, total: progress.append((got, total)),
    )
    assert target.read_bytes() == CONTENT and [entry.name for entry in target.parent.iterdir()] == ["a.tar"]
    assert progress[-1] == (len(CONTENT), len(CONTENT)) and len(progress) > 1
    download([server.url("file")], target, checksum=MD5)
    assert len(server.asked) == 1


@pytest.mark.parametrize("checksum", ["md5", "sha1", "sha256"])
def test_kinds_of_checksums(server: Server, tmp_path: Path, checksum: str) -> None:
    expected = hashlib.new(checksum, CONTENT).hexdigest()
    assert download([server.url("file")], tmp_path / "a", checksum=expected).is_file()


def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path) -> None:
    download([server.url("drops")], tmp_path / "a", checksum=MD5)
    third = len(CONTENT) // 3
    assert server.asked == [("drops", None), ("drops", f"bytes={third}-"), ("drops", f"bytes={2 * third}-")]


def test_a_later_call_and_another_mirror_go_on(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"ended after \d+ of 1024000 bytes \(1 attempts\)"):
        download([server.url("drops")], tmp_path / "a", checksum=MD5, attempts=1)
    kept = (tmp_path / "a.part").stat().st_size
    assert 0 < kept < len(CONTENT) and not (tmp_path / "a").exists()
    download([server.url("404"), server.url("file")], tmp_path / "a", checksum=MD5)
    assert server.asked[-1] == ("file", f"bytes={kept}-") and (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    assert download([server.url("norange")], tmp_path / "a", checksum=MD5).read_bytes() == CONTENT
    assert server.asked == [("norange", "bytes=1000-")]


def test_a_spoilt_part_is_started_afresh(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"x" * 1000)
    assert download([server.url("file")], tmp_path / "a", checksum=MD5).read_bytes() == CONTENT
    assert server.asked == [("file", "bytes=1000-"), ("file", None)]


@pytest.mark.parametrize("extra", [b"", b"more"])
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_complete_or_too_long(server: Server, tmp_path: Path, extra: bytes, size: int | None) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT + extra)
    download([server.url("file")], tmp_path / "a", checksum=MD5, size=size)
    assert (tmp_path / "a").read_bytes() == CONTENT
    # Not a byte is asked for again when all are there and the size says so.
    assert (server.asked == []) == (size is not None and not extra)


def test_a_wrong_file_is_never_kept_and_the_next_mirror_is_asked(server: Server, tmp_path: Path) -> None:
    target = download([server.url("wrong"), server.url("file")], tmp_path / "a", checksum=MD5)
    assert target.read_bytes() == CONTENT
    target.write_bytes(b"changed on the disk")
    with pytest.raises(DownloadError) as caught:
        download([server.url("wrong"), server.url("404")], target, checksum=MD5)
    message = str(caught.value)
    assert re.search(rf"/wrong: md5 {hashlib.md5(CONTENT[::-1]).hexdigest()} instead of {MD5}", message)
    assert "/404: HTTP 404" in message and f"put it at {target}" in message
    assert not (tmp_path / "a.part").exists() and target.read_bytes() == b"changed on the disk"


def test_busy_servers_are_asked_again_and_absent_files_are_not(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"HTTP 503 .*\(3 attempts\)"):
        download([server.url("503"), server.url("404")], tmp_path / "a", checksum=MD5, attempts=3)
    assert [path for path, _ in server.asked] == ["503"] * 3 + ["404"]


def test_a_server_that_sends_other_bytes_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DownloadError, match=r"asked for the bytes from 1000, got 'bytes 1001-"):
        download([server.url("shifted")], tmp_path / "a", checksum=MD5)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"refused.*\(2 attempts\)"):
        download(["http://127.0.0.1:9/a"], tmp_path / "a", checksum=MD5, attempts=2)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checksum must be the hexadecimal md5, sha1 or sha256, got 'abc'"):
        download([], tmp_path / "a", checksum="abc")
    with pytest.raises(ValueError, match=r"must start with https:// or http://, got 'file:///etc/passwd'"):
        download(["file:///etc/passwd"], tmp_path / "a", checksum=MD5)
    with pytest.raises(DownloadError, match=r"no address is known"):
        download([], tmp_path / "a", checksum=MD5)


def test_a_data_set_by_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from shiftnorm.data.sources import SourceFile

    files = tuple(SourceFile(name, (server.url(name),), MD5, len(CONTENT)) for name in ("blur.tar", "noise.tar"))
    monkeypatch.setitem(SOURCES, "imagenet-c", replace(SOURCES["imagenet-c"], files=files))
    assert [path.name for path in download_dataset("imagenet-c", tmp_path, only="blur.tar")] == ["blur.tar"]
    assert [path.name for path in download_dataset("imagenet-c", tmp_path)] == ["blur.tar", "noise.tar"]
    assert [path for path, _ in server.asked] == ["blur.tar", "noise.tar"]
    with pytest.raises(ValueError, match=r"files of imagenet-c are blur.tar, noise.tar, got only='fog.tar'"):
        download_dataset("imagenet-c", tmp_path, only="fog.tar")
    with pytest.raises(ValueError, match=r"name must be one of cifar10, .* got 'cifar11'"):
        download_dataset("cifar11", tmp_path)


def test_torchvision_downloads_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    asked: list[tuple[Path, bool, bool]] = []
    monkeypatch.setattr(datasets, "CIFAR100", lambda root, train, download: asked.append((root, train, download)))
    assert download_dataset("cifar100", tmp_path) == []
    assert asked == [(tmp_path, True, True), (tmp_path, False, True)]


def test_every_source_says_what_is_needed() -> None:
    for name, source in SOURCES.items():
        assert source.instructions and source.layout, name
        assert not (source.files and source.torchvision), name
        for file in source.files:
            assert len(file.checksum) == 32 and all(url.startswith("https://") for url in file.urls), name
