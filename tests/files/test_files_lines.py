"""Batch request files as they are written, and result files of any size as they are read."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from batchrun.errors import StorageError
from batchrun.files import lines
from batchrun.files.lines import RequestFile, read_lines, sweep

BODY = '{"messages":[{"content":"Größe 2","role":"user"}],"model":"m"}'.encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.db.batches"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_request_file_holds_each_body_as_it_is(folder: Path):
    file = RequestFile.create(str(folder), "one.jsonl")
    ids = ["r1-0", 'an "odd" id', "größe"]
    sizes = [file.add(custom_id, BODY) for custom_id in ids]
    digest = file.close()
    content = (folder / "one.jsonl").read_bytes()
    assert content.split(b"\n")[0] == b'{"custom_id":"r1-0","body":' + BODY + b"}"
    assert [json.loads(line)["custom_id"] for line in content.splitlines()] == ids
    assert [len(line) for line in content.splitlines(keepends=True)] == sizes
    assert (file.lines, file.size) == (3, len(content))
    assert digest == hashlib.sha256(content).digest()
    assert file.path == folder / "one.jsonl"


def test_nobody_else_may_read_a_request_file(folder: Path):
    RequestFile.create(str(folder), "one.jsonl").close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "one.jsonl").stat().st_mode) == 0o600


def test_an_empty_request_file_has_a_digest_too(folder: Path):
    assert RequestFile.create(str(folder), "one.jsonl").close() == hashlib.sha256(b"").digest()


def test_a_request_file_never_takes_the_place_of_another(folder: Path):
    first = RequestFile.create(str(folder), "one.jsonl")
    first.add("a", BODY)
    first.close()
    with pytest.raises(StorageError, match="File exists"):
        RequestFile.create(str(folder), "one.jsonl")
    assert (folder / "one.jsonl").read_bytes() != b""


@pytest.mark.parametrize("closed", [True, False])
def test_a_discarded_file_is_gone(folder: Path, closed: bool):
    file = RequestFile.create(str(folder), "one.jsonl")
    file.add("a", BODY)
    if closed:
        file.close()
    file.discard()
    file.discard()
    assert list(folder.iterdir()) == []
    RequestFile.create(str(folder), "one.jsonl").close()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "batches", tmp_path / "no" / "such"):
        with pytest.raises(StorageError, match="cannot be written"):
            RequestFile.create(str(folder), "one.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only some systems have a full disk to try")
def test_a_full_disk_is_a_storage_error_at_the_latest_when_closed(folder: Path):
    file = RequestFile.create(str(folder), "one.jsonl")
    full = open("/dev/full", "wb")  # noqa: SIM115 - the request file closes it
    file._file.close()
    file._file = full
    file.add("a", BODY)
    with pytest.raises(StorageError, match="No space left"):
        file.close()
    file.discard()
    assert list(folder.iterdir()) == []


# --- reading ---------------------------------------------------------------------------------------------------------


def test_lines_are_read_in_chunks_and_blank_ones_skipped(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"one\n\n  \r\ntwo\r\n\t\nthree \x85\xe2\x80\xa8\n\nfour")
    assert list(read_lines(str(path), 3)) == [[b"one", b"two", b"three \x85\xe2\x80\xa8"], [b"four"]]
    assert list(read_lines(str(path))) == [[b"one", b"two", b"three \x85\xe2\x80\xa8", b"four"]]


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n \n"])
def test_a_file_without_lines_has_no_chunks(tmp_path: Path, content: bytes):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    assert list(read_lines(str(path))) == []


def test_a_missing_result_file_is_a_storage_error(tmp_path: Path):
    with pytest.raises(StorageError, match="cannot be read"):
        list(read_lines(str(tmp_path / "none")))


def test_long_lines_make_short_chunks(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_bytes((b"x" * 3_000_000 + b"\n") * 7)
    assert [len(chunk) for chunk in read_lines(str(path))] == [3, 3, 1]


def test_a_line_without_end_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "LARGEST_RESULT", 1000)
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"x" * 999 + b"\n" + b"y" * 1000 + b"\n")
    with pytest.raises(StorageError, match="too long"):
        list(read_lines(str(path)))
    path.write_bytes(b"x" * 999 + b"\n" + b"y" * 1000)
    assert sum(len(chunk) for chunk in read_lines(str(path))) == 2


def test_memory_stays_flat_over_a_result_file_of_90_mb(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    with path.open("wb") as file:
        for _ in range(18):
            file.write((b"x" * 99_999 + b"\n") * 50)
    tracemalloc.start()
    try:
        assert sum(map(len, read_lines(str(path)))) == 900
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * lines.CHUNK_BYTES


def test_memory_is_bounded_for_one_line_of_many_mb(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"x" * 40_000_000 + b"\n" + b"y" * 10)
    tracemalloc.start()
    try:
        sizes = [len(line) for line in itertools.chain.from_iterable(read_lines(str(path)))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes == [40_000_000, 10]
    assert peak < 3 * 40_000_000


# --- tidying up ------------------------------------------------------------------------------------------------------


def test_only_files_that_nobody_knows_are_swept(folder: Path):
    folder.mkdir()
    for name in ("known.jsonl", "known-out.jsonl.part", "old.jsonl", "old.jsonl.part", "old.tmp", "notes.txt"):
        (folder / name).touch()
    sweep(str(folder), {"known.jsonl", str(folder / "known-out.jsonl.part")})
    assert {path.name for path in folder.iterdir()} == {"known.jsonl", "known-out.jsonl.part", "notes.txt"}


def test_an_empty_folder_goes_too_and_a_missing_one_is_fine(folder: Path):
    folder.mkdir()
    (folder / "old.jsonl").touch()
    sweep(str(folder), ())
    assert not folder.exists()
    sweep(str(folder), ())
