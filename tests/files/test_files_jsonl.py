"""JSONL as it is found in the world."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import pytest
import zstandard

from batchrun.errors import InputError
from batchrun.files import jsonl
from batchrun.files.source import Reader, discover


def reader_of(*paths):
    return Reader(discover([str(path) for path in paths]))


def test_rows_are_numbered_over_all_files_and_lines_within_each(put, rows_of):
    rows = rows_of(put("a.jsonl", b'{"x":1}\n{"x":2}\n'), put("b.ndjson", b'{"x":3}'))
    assert [(row.number, row.where, row.cells) for row in rows] == [
        (0, "a.jsonl:1", {"x": 1}),
        (1, "a.jsonl:2", {"x": 2}),
        (2, "b.ndjson:1", {"x": 3}),
    ]


def test_files_of_one_name_in_two_folders_are_told_apart_by_their_path(put, rows_of):
    first, second = rows_of(put("one/p.jsonl", b"{}"), put("two/p.jsonl", b"{}"))
    assert first.where.endswith("one/p.jsonl:1")
    assert second.where.endswith("two/p.jsonl:1")


def test_blank_lines_are_no_rows_but_count_as_lines(put, rows_of):
    rows = rows_of(put("a.jsonl", b'\n{"x":1}\n   \t\r\n\r\n{"x":2}\n  '))
    assert [(row.number, row.where) for row in rows] == [(0, "a.jsonl:2"), (1, "a.jsonl:5")]


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_line_end_do_no_harm(put, rows_of):
    rows = rows_of(put("a.jsonl", b'\xef\xbb\xbf{"x":1}\r\n{"x":2}'))
    assert [row.cells for row in rows] == [{"x": 1}, {"x": 2}]


def test_lines_end_at_line_feeds_alone(put, rows_of):
    (row,) = rows_of(put("a.jsonl", '{"x":"a\u2028b\u2029c\x85d\\re"}\n'.encode()))
    assert row.cells == {"x": "a\u2028b\u2029c\x85d\re"}


def test_values_come_as_they_are(put, rows_of):
    big = 123456789012345678901234567890
    text = json.dumps({"n": None, "big": big, "nested": {"list": [1, [2.5, {"é": "日本"}]]}, "e": "🙂"}).encode()
    (row,) = rows_of(put("a.jsonl", text))
    assert row.cells == {"n": None, "big": big, "nested": {"list": [1, [2.5, {"é": "日本"}]]}, "e": "🙂"}


def test_the_last_of_two_equal_keys_wins(put, rows_of):
    (row,) = rows_of(put("a.jsonl", b'{"x":1,"x":2}'))
    assert row.cells == {"x": 2}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"x": tru}', "not valid JSON at byte 11"),
        (b"{'x': 1}", "not valid JSON at byte 2"),
        (b'{"x": 1} {"x": 2}', "not valid JSON at byte 10"),
        (b'{"x": 1', "not valid JSON: the line ends too soon"),
        (b'{"x": "one', "not valid JSON: the line ends too soon"),
        (b'{"x": NaN}', "not valid JSON at byte 7 (NaN and Infinity are not JSON)"),
        (b"[1, 2]", "not a JSON object but a list"),
        (b'"hello"', "not a JSON object but a string"),
        (b"12", "not a JSON object but a number"),
        (b"1.5", "not a JSON object but a number"),
        (b"true", "not a JSON object but true or false"),
        (b"null", "not a JSON object but null"),
        (b'{"x": "\xff"}', "not UTF-8 at byte 8"),
        (b'{"x": "\\ud83d"}', "holds half of a surrogate pair (a broken \\u escape)"),
        (b'{"x": 1e999}', "holds a number out of range"),
        (b'{"x":' * 100_000, "nested too deeply"),
        (b'{"x": "a\x00b"}', "not valid JSON at byte 9"),
    ],
)
def test_a_line_that_is_no_object_is_kept_with_the_reason(put, rows_of, line, problem):
    before, bad, after = rows_of(put("a.jsonl", b"{}\n" + line + b"\r\n{}\n"))
    assert (bad.cells, bad.problem, bad.raw, bad.where) == (None, problem, line, "a.jsonl:2")
    assert before.cells == after.cells == {}
    assert before.problem == after.problem == ""


def test_an_empty_file_has_no_rows(put):
    reader = reader_of(put("a.jsonl", b""), put("b.jsonl", b"{}\n{}"), put("c.jsonl", b"\xef\xbb\xbf\n \n"))
    assert len([row for chunk in reader.chunks() for row in chunk]) == 2
    assert reader.rows_per_file == [0, 2, 0]


def test_chunks_are_bounded_by_rows_and_by_bytes(put, monkeypatch):
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 100)
    path = put("a.jsonl", b'{"x":1}\n' * 7 + b'{"x":"' + b"y" * 200 + b'"}\n' + b'{"x":1}\n' * 4)
    assert [len(chunk) for chunk in reader_of(path).chunks(5)] == [5, 3, 4]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_compressed_files_read_the_same_even_of_several_frames(put, rows_of, pack):
    ending = ".jsonl.gz" if pack is gzip.compress else ".jsonl.zst"
    lines = [b'{"x":"%d %s"}\n' % (number, b"y" * (number % 300)) for number in range(3000)]
    path = put("a" + ending, pack(b"\xef\xbb\xbf" + b"".join(lines[:2000])) + pack(b"") + pack(b"".join(lines[2000:])))
    assert [row.text for row in rows_of(path)] == lines


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_compressed_file_cut_short_is_an_error_that_names_it(put, rows_of, ending, pack):
    whole = pack(b"".join(b'{"x":"%d"}\n' % (number * 7919) for number in range(2000)))
    path = put("a.jsonl" + ending, whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.jsonl\.\w+ is cut short"):
        rows_of(path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_it_says_is_an_error_that_names_it(put, rows_of, ending):
    with pytest.raises(InputError, match=r"a\.jsonl\.\w+ is damaged"):
        rows_of(put("a.jsonl" + ending, b'{"x":1}\n' * 100))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"{}"), "compressed with gzip"),
        (zstandard.compress(b"{}"), "compressed with zstd"),
        (b"PAR1....", "a Parquet file"),
        ('{"x":1}'.encode("utf-16"), "text in UTF-16"),
    ],
    ids=["gzip", "zstd", "parquet", "utf-16"],
)
def test_a_file_that_is_plainly_no_jsonl_is_named_for_what_it_is(put, rows_of, content, what):
    with pytest.raises(InputError, match=f"is not JSONL but {what}"):
        rows_of(put("a.jsonl", content))


def test_take_gives_the_wanted_rows_over_files_and_goes_on_where_it_stopped(put):
    first = put("a.jsonl", b'{"x":0}\n\nbroken\n{"x":2}\n')
    reader = reader_of(first, put("empty.jsonl", b""), put("b.jsonl", b'{"x":3}\n{"x":4}\n{"x":5}'))
    assert [row.number for row in reader.take([])] == []
    assert [(row.number, row.where) for row in reader.take([1])] == [(1, "a.jsonl:3")]
    assert [(row.cells, row.where) for row in reader.take([2, 4])] == [({"x": 2}, "a.jsonl:4"), ({"x": 4}, "b.jsonl:2")]
    assert [row.cells for row in reader.take([5])] == [{"x": 5}]
    reader.close()


def test_take_gives_the_same_rows_as_chunks(put, rows_of):
    path = put("a.jsonl", b'{"x":0}\r\n\n[]\n{"x":2}\n  \n{"x":3}')
    with reader_of(path) as reader:
        assert list(reader.take(range(4))) == rows_of(path)


def test_skipped_lines_are_not_parsed(put, monkeypatch):
    reader = reader_of(put("a.jsonl", b'{"x":0}\n' * 50))
    parsed = []
    monkeypatch.setattr(jsonl, "_decode", lambda text: parsed.append(text) or {})
    list(reader.take([10, 49]))
    assert len(parsed) == 2
    reader.close()


def test_asking_for_a_row_beyond_the_last_says_that_the_input_has_fewer(put):
    with pytest.raises(InputError, match="only 2 rows now"):
        list(reader_of(put("a.jsonl", b"{}\n{}\n")).take([0, 5]))


def test_asking_backwards_is_a_mistake_of_the_program(put):
    reader = reader_of(put("a.jsonl", b"{}\n{}\n{}\n"))
    assert len(list(reader.take([1]))) == 1
    with pytest.raises(ValueError, match="row 0 was asked for"):
        list(reader.take([0]))
    reader.close()


def test_a_file_that_changed_since_it_was_listed_is_refused(put):
    path = put("a.jsonl", b"{}\n")
    reader = reader_of(path)
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(InputError, match="has changed while"):
        list(reader.chunks())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error_that_names_it(put, rows_of):
    path = put("a.jsonl", b"{}\n")
    path.chmod(0)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        rows_of(path)


_WALK = """
import resource, sys
from batchrun.files.source import Reader, discover
rows = sum(len(chunk) for chunk in Reader(discover([sys.argv[1]])).chunks())
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(rows, peak // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its own peak from /proc")
def test_lines_of_fifty_megabytes_take_a_few_times_their_size_and_not_all_at_once(put):
    line = b'{"prompt":"' + b"y" * 50_000_000 + b'"}\n'
    path = put("long.jsonl", line * 5)
    done = subprocess.run([sys.executable, "-c", _WALK, str(path)], capture_output=True, text=True, check=True)
    rows, peak = map(int, done.stdout.split())
    assert rows == 5
    assert peak < 30 + 5 * 50


def test_a_run_from_jsonl_to_jsonl_imports_neither_pyarrow_nor_what_it_does_not_need(put, tmp_path):
    code = """
import sys
from batchrun.files import prompt, sink, source
from batchrun.job import Asking
files = source.discover([sys.argv[1]])
scan = sink.ColumnScan()
for chunk in source.Reader(files).chunks():
    scan.see(chunk)
ask = prompt.Prompter(Asking(model="m"))
rows = list(source.Reader(files).take([0]))
assert ask.request(rows[0]).model == "m"
sink.check_output(sys.argv[2])
sink.write(sys.argv[2], scan.settle(), files, [(rows[0], {})])
print([name for name in ("pyarrow", "jinja2", "zstandard", "numpy") if name in sys.modules])
"""
    path = put("a.jsonl", b'{"prompt":"hello"}\n')
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out.jsonl")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
