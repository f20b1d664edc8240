"""Which files an input means, and what is said when it means none."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchrun.errors import InputError
from batchrun.files.source import discover


def names(*inputs: str | Path) -> list[str]:
    return [Path(file.path).name for file in discover([str(typed) for typed in inputs])]


def test_a_file_is_found_with_its_absolute_path_size_and_time(put, monkeypatch, tmp_path):
    path = put("prompts.jsonl", b"{}\n")
    monkeypatch.chdir(tmp_path)
    (file,) = discover(["prompts.jsonl"])
    assert (file.path, file.size, file.mtime_ns) == (str(path), 3, path.stat().st_mtime_ns)


def test_a_folder_gives_its_known_files_sorted_and_neither_hidden_ones_nor_subfolders(put, tmp_path):
    for name in (
        "b.jsonl",
        "a.parquet",
        "c.JSONL.GZ",
        "d.ndjson",
        "e.jsonl.zst",
        ".hidden.jsonl",
        "notes.txt",
        "sub/x.jsonl",
    ):
        put(name, b"")
    assert names(tmp_path) == ["a.parquet", "b.jsonl", "c.JSONL.GZ", "d.ndjson", "e.jsonl.zst"]


def test_a_glob_is_sorted_and_two_stars_go_into_subfolders(put, tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "a.txt"):
        put(name, b"")
    assert names(tmp_path / "*") == ["a.jsonl", "b.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl") == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(put):
    assert names(put("part[1].jsonl", b"")) == ["part[1].jsonl"]


def test_the_order_of_the_arguments_is_kept(put):
    later, earlier = put("z.jsonl", b""), put("a.jsonl", b"")
    assert names(later, earlier) == ["z.jsonl", "a.jsonl"]


@pytest.mark.parametrize("second", ["prompts.jsonl", "./x/../prompts.jsonl", "link.jsonl", "*.jsonl"])
def test_the_same_file_twice_is_refused_however_it_is_written(put, monkeypatch, tmp_path, second):
    put("prompts.jsonl", b"{}")
    put("x/y", b"")
    (tmp_path / "link.jsonl").symlink_to("prompts.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"prompts\.jsonl is named [23] times"):
        discover(["prompts.jsonl", second])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("nowhere.jsonl", "does not exist"),
        ("empty", "has no input files"),
        ("*.parquet", "No input file matches"),
        ("prompts.csv", "an ending that is not known"),
    ],
)
def test_what_is_missing_or_unknown_says_what_to_do(put, monkeypatch, tmp_path, typed, message):
    put("prompts.csv", b"")
    put("empty/notes.txt", b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        discover([typed])
    assert caught.value.next_step
    assert caught.value.exit_code == 2


def test_a_name_longer_than_the_system_takes_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be looked up: File name too long"):
        discover([str(tmp_path / ("a" * 300 + ".jsonl"))])
