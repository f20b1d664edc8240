"""Parquet as rows: every type as JSON can carry it, only the wanted row groups, clear words for broken files."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import InputError
from batchrun.files import parquet
from batchrun.files.source import Reader, discover
from batchrun.rules.canonical import canonical


def stored(path, table, **options):
    pq.write_table(table, path, **options)
    return path


def reader_of(*paths):
    return Reader(discover([str(path) for path in paths]))


def test_rows_come_in_order_with_their_place(tmp_path, rows_of):
    path = stored(tmp_path / "part.parquet", pa.table({"id": range(5), "prompt": list("abcde")}), row_group_size=2)
    rows = rows_of(path)
    assert [row.cells for row in rows] == [{"id": n, "prompt": "abcde"[n]} for n in range(5)]
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert rows[3].where == "part.parquet row 4"
    assert rows[3].raw == canonical({"prompt": "d", "id": 3})


BERLIN = pa.timestamp("ns", "Europe/Berlin")


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (pa.array([1_700_000_000_123_456_789], BERLIN), "2023-11-14T22:13:20.123456789Z"),
        (pa.array([dt.datetime(2024, 2, 29, 12)], pa.timestamp("us")), "2024-02-29T12:00:00.000000"),  # noqa: DTZ001 - a column without a zone
        (pa.array([dt.date(2024, 2, 29)]), "2024-02-29"),
        (pa.array([dt.time(1, 2, 3, 4)]), "01:02:03.000004"),
        (pa.array([90], pa.duration("s")), 90),
        (pa.array([Decimal("1000.10")]), "1000.10"),
        (pa.array([Decimal(1)], pa.decimal128(38, 10)), "1.0000000000"),
        (pa.array([b"\x00\xff"]), b"\x00\xff"),
        (pa.array([b"ab"], pa.binary(2)), b"ab"),
        (pa.array([float("nan")]), None),
        (pa.array([float("-inf")]), None),
        (pa.array([1.5], pa.float16()), 1.5),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array([[1, None, 3]]), [1, None, 3]),
        (pa.array([[float("nan")]]), [None]),
        (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), [1, 2]),
        (pa.array([[Decimal("1.5")]]), ["1.5"]),
        (pa.array([{"when": dt.datetime(2024, 1, 1), "in": [{"raw": b"a"}]}], pa.struct([  # noqa: DTZ001 - a column without a zone
            ("when", pa.timestamp("ms")), ("in", pa.list_(pa.struct([("raw", pa.binary())]))),
        ])), {"when": "2024-01-01T00:00:00.000", "in": [{"raw": b"a"}]}),
        (pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64())), {"a": 1, "b": None}),
        (pa.array([[(1, "x")]], pa.map_(pa.int32(), pa.string())), [[1, "x"]]),
        (pa.array([None], pa.null()), None),
        (pa.array([True]), True),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_each_type_becomes_a_value_that_json_can_carry(tmp_path, rows_of, array, value):
    nulls = pa.nulls(1, array.type)
    path = stored(tmp_path / "a.parquet", pa.table({"x": pa.chunked_array([array, nulls, array])}))
    cells = [row.cells["x"] for row in rows_of(path)]
    assert cells == [value, None, value]
    assert type(cells[0]) is type(value)
    msgspec.json.encode(cells)


def test_text_that_is_not_utf8_stays_bytes_so_that_it_is_never_sent_by_mistake(tmp_path, rows_of):
    bad = pa.array([b"fine", b"\xff\xfe", None]).view(pa.string())
    rows = rows_of(stored(tmp_path / "a.parquet", pa.table({"prompt": bad})))
    assert [row.cells["prompt"] for row in rows] == ["fine", b"\xff\xfe", None]


def test_files_with_differing_schemas_and_without_rows_follow_one_another(tmp_path, rows_of):
    first = stored(tmp_path / "a.parquet", pa.table({"x": [1]}))
    empty = stored(tmp_path / "b.parquet", pa.table({"x": pa.array([], pa.int64())}))
    other = stored(tmp_path / "c.parquet", pa.table({"y": ["z"], "x": [1.5]}))
    assert [(row.number, row.cells) for row in rows_of(first, empty, other)] == [
        (0, {"x": 1}),
        (1, {"y": "z", "x": 1.5}),
    ]
    reader = reader_of(first, empty, other)
    assert sum(len(chunk) for chunk in reader.chunks()) == 2
    assert reader.rows_per_file == [1, 0, 1]


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -9])
def test_a_file_cut_short_is_an_error_that_names_it(tmp_path, rows_of, keep):
    path = stored(tmp_path / "a.parquet", pa.table({"x": range(1000)}))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.parquet is cut short, damaged or not Parquet") as caught:
        rows_of(path)
    assert caught.value.next_step


def test_a_file_damaged_in_the_middle_is_an_error_that_names_it(tmp_path, rows_of):
    path = stored(
        tmp_path / "a.parquet", pa.table({"x": [f"text {n * 7919}" for n in range(5000)]}), compression="zstd"
    )
    content = bytearray(path.read_bytes())
    content[200:1200] = b"\x00" * 1000
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet is cut short"):
        rows_of(path)


def test_two_columns_of_one_name_are_refused(tmp_path, rows_of):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(InputError, match="two columns named 'x'"):
        rows_of(stored(tmp_path / "a.parquet", table))


def test_take_gives_the_wanted_rows_over_files_and_row_groups_and_goes_on_where_it_stopped(tmp_path):
    first = stored(tmp_path / "a.parquet", pa.table({"x": range(10)}), row_group_size=3)
    empty = stored(tmp_path / "b.parquet", pa.table({"x": pa.array([], pa.int64())}))
    last = stored(tmp_path / "c.parquet", pa.table({"x": range(10, 20)}), row_group_size=4)
    with reader_of(first, empty, last) as reader:
        for numbers in ([0], [1, 2], [8], [], [9, 11, 12], [18, 19]):
            assert [(row.number, row.cells) for row in reader.take(numbers)] == [(n, {"x": n}) for n in numbers]
        with pytest.raises(InputError, match="only 20 rows"):
            list(reader.take([20]))


def test_take_stopped_half_way_goes_on_with_the_next_row(tmp_path):
    with reader_of(stored(tmp_path / "a.parquet", pa.table({"x": range(10)}))) as reader:
        assert next(reader.take([2, 3, 4])).cells == {"x": 2}
        assert [row.cells for row in reader.take([3, 9])] == [{"x": 3}, {"x": 9}]
        with pytest.raises(ValueError, match="row 4 was asked for"):
            list(reader.take([4]))


def test_take_gives_the_same_rows_as_chunks(tmp_path, rows_of):
    path = stored(tmp_path / "a.parquet", pa.table({"x": range(50)}), row_group_size=7)
    with reader_of(path) as reader:
        taken = list(reader.take(range(50)))
    assert [(row.number, row.where, row.cells) for row in taken] == [
        (row.number, row.where, row.cells) for row in rows_of(path)
    ]


def test_row_groups_without_a_wanted_row_are_not_read(tmp_path, monkeypatch):
    path = stored(tmp_path / "a.parquet", pa.table({"x": range(100)}), row_group_size=10)
    read = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *a, **k: read.append(k["row_groups"]) or iter_batches(self, *a, **k),
    )
    with reader_of(path) as reader:
        assert [row.cells["x"] for row in reader.take([5, 55, 99])] == [5, 55, 99]
    assert read == [[0], [5], [9]]


def test_chunks_of_long_rows_are_short(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 10_000)
    path = stored(tmp_path / "a.parquet", pa.table({"x": [f"{n:05}" * 200 for n in range(50)]}), use_dictionary=False)
    sizes = [len(chunk) for chunk in reader_of(path).chunks()]
    assert sum(sizes) == 50
    assert max(sizes) <= 10
