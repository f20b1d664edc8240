"""Which columns an output has, settled from the rows that were seen."""

from __future__ import annotations

import msgspec
import pytest

from batchrun.files.columns import OUTCOME_COLUMNS, Columns, ColumnScan, Kind
from batchrun.files.row import Row


def settled(*cells):
    scan = ColumnScan()
    scan.see(Row(number, "a.jsonl:", number + 1, each, b"") for number, each in enumerate(cells))
    return scan.settle()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, None, False], Kind.BOOL),
        ([1, -5, None], Kind.INT),
        ([2**63 - 1, -(2**63)], Kind.INT),
        ([2**63], Kind.JSON),
        ([1, 2.5], Kind.FLOAT),
        ([1.0], Kind.FLOAT),
        ([2.5, 2**53], Kind.FLOAT),
        ([2.5, 2**53 + 1], Kind.JSON),
        (["a", None], Kind.STR),
        (["a", b"a"], Kind.STR),
        ([None, None], Kind.STR),
        ([True, 1], Kind.JSON),
        (["a", 1], Kind.JSON),
        ([[1], None], Kind.JSON),
        ([{"a": 1}], Kind.JSON),
    ],
)
def test_a_column_gets_the_narrowest_kind_that_loses_nothing(values, kind):
    (column,) = settled(*({"x": value} for value in values)).inputs
    assert column.kind is kind


def test_columns_come_in_order_of_first_appearance_and_unreadable_rows_have_none():
    columns = settled({"b": 1, "a": 2}, None, {"c": 3, "a": 4})
    assert [column.name for column in columns.inputs] == ["b", "a", "c"]


def test_our_columns_keep_their_names_where_the_input_leaves_them_free():
    assert settled({"id": 1}).ours == tuple(column.name for column in OUTCOME_COLUMNS)


def test_our_columns_step_aside_for_the_input_again_and_again():
    columns = settled({"answer": 1, "model": 1, "batchrun_model": 1, "batchrun_2_model": 1, "State": 1})
    assert columns.ours[0] == "batchrun_state"
    assert columns.ours[1] == "batchrun_answer"
    assert columns.ours[4] == "batchrun_3_model"
    assert len(set(columns.ours)) == len(OUTCOME_COLUMNS)


def test_the_settled_columns_survive_a_round_trip_as_json():
    columns = settled({"model": 1, "x": "a", "y": [1]})
    assert msgspec.json.decode(msgspec.json.encode(columns), type=Columns) == columns
