"""Outputs read back: every row, the input's columns as they were, ours beside them, whole or not at all."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import stat
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun import door
from batchrun.errors import InputError, StorageError, UsageError
from batchrun.files import parquet_out, sink
from batchrun.files.sink import OUTCOME_COLUMNS

OURS = [column.name for column in OUTCOME_COLUMNS]
AWKWARD = (
    b'{"id":1,"prompt":"a\\u2028b \xf0\x9f\x99\x82","z":null,"big":123456789012345678901234567890,'
    b'"mix":1,"n":{"b":[1,2.5]}}\r\n'
    b"\n"
    b"broken\n"
    b'{"mix":"one","id":2,"prompt":null,"later":1.5}\n'
    b'{"id":3,"later":2,"answer":"theirs","n":[null]}'
)


def inside(folder: Path):
    return [entry.name for entry in folder.iterdir()]


def lines(path: Path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_jsonl_keeps_the_cells_and_their_order_and_puts_ours_behind_them(put, exported, tmp_path):
    out = lines(exported(put("a.jsonl", AWKWARD)).to(tmp_path / "out.jsonl"))
    first, bad, second, third = out
    assert list(first)[:6] == ["id", "prompt", "z", "big", "mix", "n"]
    assert first["prompt"] == "a\u2028b 🙂"
    assert first["big"] == 123456789012345678901234567890
    assert first["n"] == {"b": [1, 2.5]}
    assert list(second)[:4] == ["mix", "id", "prompt", "later"]
    assert list(first)[6:] == ["state", "batchrun_answer", *OURS[2:]]
    assert (third["answer"], third["batchrun_answer"]) == ("theirs", "answer 3")
    assert bad["id"] is bad["prompt"] is bad["answer"] is None
    assert bad["batchrun_answer"] == "answer 1"


def test_parquet_has_the_settled_types_and_nested_or_mixed_values_as_json_text(put, exported, tmp_path):
    table = pq.read_table(exported(put("a.jsonl", AWKWARD)).to(tmp_path / "out.parquet"))
    assert {name: str(table.schema.field(name).type) for name in ("id", "prompt", "z", "big", "mix", "n", "later")} == {
        "id": "int64", "prompt": "string", "z": "string", "big": "string", "mix": "string", "n": "string",
        "later": "double",
    }  # fmt: skip
    first, bad, second, third = table.to_pylist()
    assert (first["prompt"], first["big"], first["mix"]) == ("a\u2028b 🙂", "123456789012345678901234567890", "1")
    assert (first["n"], third["n"], second["n"]) == ('{"b":[1,2.5]}', "[null]", None)
    assert (second["mix"], second["later"], third["later"]) == ('"one"', 1.5, 2.0)
    assert bad["id"] is bad["prompt"] is None
    assert [row["batchrun_answer"] for row in table.to_pylist()] == [f"answer {number}" for number in range(4)]


def test_our_columns_always_have_the_same_types(put, exported, tmp_path):
    schema = pq.read_schema(exported(put("a.jsonl", b'{"prompt":"x"}')).to(tmp_path / "out.parquet"))
    kinds = {"str": "string", "int": "int64", "float": "double"}
    assert [(field.name, str(field.type)) for field in schema][1:] == [
        (column.name, kinds[column.kind.value]) for column in OUTCOME_COLUMNS
    ]


def exact_table(count):
    moments = [1_700_000_000_123_456_789 + number for number in range(count)]
    return pa.table({
        "id": pa.array(range(count), pa.int32()),
        "at": pa.array(moments, pa.timestamp("ns", "Europe/Berlin")),
        "price": pa.array([Decimal(number) / 100 for number in range(count)], pa.decimal128(12, 4)),
        "kind": pa.array([f"kind {number % 3}" for number in range(count)]).dictionary_encode(),
        "raw": pa.array([bytes([number % 256, 255]) for number in range(count)], pa.binary()),
        "text": pa.array([None if number % 5 == 0 else f"t{number}" for number in range(count)], pa.large_string()),
        "nested": pa.array([[{"when": dt.date(2024, 1, 1), "x": [number]}] for number in range(count)]),
        "map": pa.array([[("k", number)] for number in range(count)], pa.map_(pa.string(), pa.int8())) if count < 100
        else pa.array([[("k", 1)]] * count, pa.map_(pa.string(), pa.int8())),
        "real": pa.array([float("nan") if number % 7 == 0 else number / 7 for number in range(count)], pa.float32()),
    })  # fmt: skip


def plain(column):
    """As text, since nan is not nan; moments as the numbers they are, since Python has no nanoseconds."""
    return str((column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist())


def test_from_parquet_to_parquet_the_columns_of_the_input_pass_through_exactly(exported, tmp_path):
    table = exact_table(5000)
    pq.write_table(table.slice(0, 3001), tmp_path / "a.parquet", row_group_size=700)
    pq.write_table(table.slice(3001), tmp_path / "b.parquet")
    out = pq.read_table(exported(tmp_path / "a.parquet", tmp_path / "b.parquet").to(tmp_path / "out.parquet"))
    theirs = out.select(table.schema.names)
    assert theirs.schema.remove_metadata() == table.schema
    for name in table.schema.names:
        assert plain(theirs[name]) == plain(table[name])
    assert out["answer"].to_pylist() == [f"answer {number}" for number in range(5000)]
    assert out.schema.names == [*table.schema.names, *OURS]


def test_rows_left_out_between_do_not_shift_the_columns(exported, tmp_path):
    pq.write_table(exact_table(50), tmp_path / "a.parquet")
    job = exported(tmp_path / "a.parquet")
    some = [pair for pair in job.pairs() if pair[0].number % 3 == 1 or pair[0].number > 40]
    out = pq.read_table(job.to(tmp_path / "out.parquet", some), columns=["id", "answer"]).to_pylist()
    assert [(row["id"], row["answer"]) for row in out] == [(row.number, f"answer {row.number}") for row, _ in some]


def test_from_parquet_to_jsonl_every_type_becomes_json(exported, tmp_path):
    pq.write_table(exact_table(8), tmp_path / "a.parquet")
    row = lines(exported(tmp_path / "a.parquet").to(tmp_path / "out.jsonl"))[7]
    assert {name: row[name] for name in list(row)[:9]} == {
        "id": 7, "at": "2023-11-14T22:13:20.123456796Z", "price": "0.0700", "kind": "kind 1", "raw": "B/8=",
        "text": "t7", "nested": [{"when": "2024-01-01", "x": [7]}], "map": {"k": 7}, "real": None,
    }  # fmt: skip


def test_parquet_files_of_differing_schemas_meet_in_settled_columns(exported, tmp_path):
    pq.write_table(pa.table({"id": [1], "raw": [b"\xff"], "at": [dt.datetime(2024, 1, 1)]}), tmp_path / "a.parquet")  # noqa: DTZ001 - a column without a zone
    pq.write_table(pa.table({"id": [1.5], "tags": [["x"]]}), tmp_path / "b.parquet")
    out = pq.read_table(exported(tmp_path / "a.parquet", tmp_path / "b.parquet").to(tmp_path / "out.parquet"))
    assert [{name: row[name] for name in ("id", "raw", "at", "tags")} for row in out.to_pylist()] == [
        {"id": 1.0, "raw": "/w==", "at": "2024-01-01T00:00:00.000000", "tags": None},
        {"id": 1.5, "raw": None, "at": None, "tags": '["x"]'},
    ]


def test_jsonl_and_parquet_input_can_be_mixed(put, exported, tmp_path):
    pq.write_table(pa.table({"prompt": ["from parquet"]}), tmp_path / "b.parquet")
    out = exported(put("a.jsonl", b'{"prompt":"from jsonl"}'), tmp_path / "b.parquet").to(tmp_path / "out.parquet")
    assert pq.read_table(out)["prompt"].to_pylist() == ["from jsonl", "from parquet"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_the_same_input_gives_the_same_bytes(put, exported, tmp_path, name):
    job = exported(put("a.jsonl", AWKWARD))
    first = job.to(tmp_path / name).read_bytes()
    assert job.to(tmp_path / name).read_bytes() == first


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_an_input_without_rows_gives_an_output_without_rows(put, exported, tmp_path, name):
    out = exported(put("a.jsonl", b"")).to(tmp_path / name)
    assert pq.read_table(out).num_rows == 0 if name.endswith("parquet") else out.read_bytes() == b""


def test_parquet_without_rows_keeps_its_columns(exported, tmp_path):
    pq.write_table(exact_table(0), tmp_path / "a.parquet")
    schema = pq.read_schema(exported(tmp_path / "a.parquet").to(tmp_path / "out.parquet"))
    assert schema.names == [*exact_table(0).schema.names, *OURS]


def test_row_groups_are_bounded_by_rows_and_by_bytes(put, exported, tmp_path, monkeypatch):
    job = exported(put("a.jsonl", b'{"x":1}\n' * 45_000))
    groups = pq.ParquetFile(job.to(tmp_path / "out.parquet")).metadata
    assert [groups.row_group(index).num_rows for index in range(groups.num_row_groups)] == [
        10_000,
        10_000,
        10_000,
        10_000,
        5_000,
    ]
    monkeypatch.setattr(parquet_out, "GROUP_BYTES", 100_000)
    groups = pq.ParquetFile(job.to(tmp_path / "out.parquet")).metadata
    assert max(groups.row_group(index).num_rows for index in range(groups.num_row_groups)) <= 2000
    assert groups.num_rows == 45_000


# --- whole or not at all


def failing(job, after):
    for count, pair in enumerate(job.pairs()):
        if count == after:
            raise InputError("the input is gone")
        yield pair


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_failure_half_way_leaves_the_old_output_and_no_temporary_file(put, exported, tmp_path, name, after):
    job = exported(put("in/a.jsonl", AWKWARD))
    put(f"out/{name}", b"the old output")
    with pytest.raises(InputError, match="the input is gone"):
        job.to(tmp_path / "out" / name, failing(job, after))
    assert (tmp_path / "out" / name).read_bytes() == b"the old output"
    assert inside(tmp_path / "out") == [name]


def test_a_failure_at_the_rename_leaves_the_old_output_and_no_temporary_file(put, exported, tmp_path):
    job = exported(put("in/a.jsonl", AWKWARD))
    put("out/out.jsonl", b"the old output")
    seen = []

    def stop(step):
        (temporary,) = set(inside(tmp_path / "out")) - {"out.jsonl"}
        seen.append((step, len(lines(tmp_path / "out" / temporary))))
        raise KeyboardInterrupt

    door.watch(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            job.to(tmp_path / "out" / "out.jsonl")
    finally:
        door.watch(None)
    assert seen == [("rename", 4)]
    assert (tmp_path / "out" / "out.jsonl").read_bytes() == b"the old output"
    assert inside(tmp_path / "out") == ["out.jsonl"]


def test_every_byte_is_on_the_disk_before_the_rename(put, exported, tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle)) or real(handle))
    size = exported(put("a.jsonl", AWKWARD)).to(tmp_path / "out.jsonl").stat().st_size
    assert synced[0].st_size == size
    assert stat.S_ISDIR(synced[1].st_mode)


def test_the_output_has_the_rights_of_any_new_file(put, exported, tmp_path):
    before = os.umask(0o027)
    try:
        out = exported(put("a.jsonl", AWKWARD)).to(tmp_path / "out.jsonl")
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


def test_a_link_goes_on_pointing_where_it_did(put, exported, tmp_path):
    put("elsewhere/real.jsonl", b"old")
    (tmp_path / "out.jsonl").symlink_to("elsewhere/real.jsonl")
    exported(put("a.jsonl", b'{"x":1}')).to(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").is_symlink()
    assert lines(tmp_path / "elsewhere" / "real.jsonl")[0]["x"] == 1


_FULL_DISK = """
import resource, signal, sys
from batchrun.errors import StorageError
from batchrun.files import sink, source
files = source.discover([sys.argv[1]])
scan = sink.ColumnScan()
rows = [row for chunk in source.Reader(files).chunks() for row in chunk]
scan.see(rows)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    sink.write(sys.argv[2], scan.settle(), files, [(row, {}) for row in rows])
except StorageError as error:
    print(error.message, error.next_step, error.exit_code)
"""


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_file_that_cannot_grow_is_a_storage_error_that_says_the_answers_are_kept(put, tmp_path, name):
    path = put("in/a.jsonl", b"".join(b'{"x":"%s"}\n' % os.urandom(40).hex().encode() for _ in range(3000)))
    put("out/.keep", b"")
    command = [sys.executable, "-c", _FULL_DISK, str(path), str(tmp_path / "out" / name)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written: File too large." in said.stdout, said.stderr
    assert "answers are kept in the checkpoint" in said.stdout
    assert said.stdout.endswith(" 11\n")
    assert inside(tmp_path / "out") == [".keep"]


def test_a_folder_that_is_gone_is_a_storage_error(put, exported, tmp_path):
    with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
        exported(put("a.jsonl", AWKWARD)).to(tmp_path / "gone" / "out.jsonl")


# --- an input that is not what it was


def changed(put, exported, before, after, name, tmp_path):
    job = exported(put("a.jsonl", before))
    later = exported(put("a.jsonl", after))
    job.files = later.files
    with pytest.raises(InputError) as caught:
        job.to(tmp_path / name, later.pairs())
    assert "answers are kept" in caught.value.next_step
    assert not (tmp_path / name).exists()
    return caught.value.message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"x":1}', b'{"x":"one"}'),
        (b'{"x":1}', b'{"x":true}'),
        (b'{"x":1}', b'{"x":9223372036854775808}'),
        (b'{"x":1.5}', b'{"x":9007199254740993}'),
        (b'{"x":"one"}', b'{"x":[1]}'),
        (b'{"x":true}', b'{"x":1}'),
    ],
)
def test_a_value_that_does_not_fit_the_settled_type_is_an_input_error(put, exported, tmp_path, before, after):
    message = changed(put, exported, before, after, "out.parquet", tmp_path)
    assert "Between a.jsonl:1 and a.jsonl:1, column 'x' holds a value that is no" in message


def test_a_column_that_was_not_there_before_is_an_input_error(put, exported, tmp_path):
    message = changed(put, exported, b'{"x":1}', b'{"x":1}\n{"y":1}', "out.parquet", tmp_path)
    assert message == "a.jsonl:2 has a column that was not there before."


def test_a_column_that_took_the_name_of_one_of_ours_is_an_input_error(put, exported, tmp_path):
    assert "name of an output column" in changed(put, exported, b'{"x":1}', b'{"state":1}', "out.jsonl", tmp_path)


def test_rows_of_another_schema_than_the_files_have_are_an_input_error(exported, tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"y": [1]}), tmp_path / "b.parquet")
    job, other = exported(tmp_path / "a.parquet"), exported(tmp_path / "b.parquet")
    with pytest.raises(InputError, match="does not have the columns of the other rows"):
        job.to(tmp_path / "out.parquet", other.pairs())


# --- where it may go


@pytest.mark.parametrize("name", ["out.csv", "out", "out.jsonl.gz"])
def test_an_output_of_another_ending_is_a_usage_error(exported, put, tmp_path, name):
    with pytest.raises(UsageError, match=r"neither \.jsonl nor \.parquet"):
        exported(put("a.jsonl", AWKWARD)).to(tmp_path / name)


def test_an_output_is_looked_at_before_money_is_spent(tmp_path, put):
    sink.check_output(str(tmp_path / "out.PARQUET"))
    put("there.jsonl", b"old")
    sink.check_output(str(tmp_path / "there.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in (("gone/out.jsonl", "does not exist"), ("folder.jsonl", "is not a file")):
        with pytest.raises(UsageError, match=message):
            sink.check_output(str(tmp_path / name))


def test_the_jsonl_form_can_go_to_an_open_stream(put, exported):
    job = exported(put("a.jsonl", AWKWARD))
    out = io.BytesIO()
    assert sink.write_stream(out, job.columns, job.pairs()) == 4
    assert [json.loads(line)["state"] for line in out.getvalue().splitlines()] == ["answered"] * 4


# --- flat memory

_WRITE = """
import sys
from batchrun.files import sink, source
files = source.discover([sys.argv[1]])
scan = sink.ColumnScan()
for chunk in source.Reader(files).chunks():
    scan.see(chunk)
def pairs():
    for chunk in source.Reader(files).chunks():
        for row in chunk:
            yield row, {"state": "answered", "answer": f"{row.number} " * 300, "response_json": f"{row.number};" * 300}
sink.write(sys.argv[2], scan.settle(), files, pairs())
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its own peak from /proc")
@pytest.mark.parametrize(("ending", "most"), [("jsonl", 60), ("parquet", 260)])
def test_memory_does_not_grow_with_the_rows_written(put, tmp_path, ending, most):
    path = put("a.jsonl", b"".join(b'{"id":%d,"prompt":"%s"}\n' % (n, b"x" * 200) for n in range(100_000)))
    command = [sys.executable, "-c", _WRITE, str(path), str(tmp_path / f"out.{ending}")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < most
