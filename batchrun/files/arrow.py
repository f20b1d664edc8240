"""Arrow values as JSON ones. Only called with Parquet at hand, so it alone may import pyarrow at its top.

Times become ISO 8601 (UTC with a `Z` where the column has a zone), decimals strings, durations whole numbers of their
unit, maps objects, NaN and infinities null. Binary stays `bytes`: in JSON it is base64, and as a prompt it is refused.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kind


def cells(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """One dict a row, columns in the order of the batch."""
    names = batch.schema.names
    if not names:
        return [{} for _ in range(batch.num_rows)]
    columns = [values(column) for column in batch.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def values(array: pa.Array) -> list[Any]:
    """The array as values that JSON can carry (and `bytes`)."""
    of = array.type
    if kind.is_integer(of) or kind.is_boolean(of) or kind.is_null(of) or _is_bytes(of):
        return list(array.to_pylist())
    if _is_text(of):
        return _texts(array)
    if kind.is_floating(of):
        return [value if value is not None and math.isfinite(value) else None for value in array.to_pylist()]
    if kind.is_temporal(of):
        return _times(array)
    return _others(array)


def _is_text(of: pa.DataType) -> bool:
    return bool(kind.is_string(of) or kind.is_large_string(of) or kind.is_string_view(of))


def _is_bytes(of: pa.DataType) -> bool:
    return bool(
        kind.is_binary(of) or kind.is_large_binary(of) or kind.is_fixed_size_binary(of) or kind.is_binary_view(of)
    )


def _texts(array: pa.Array) -> list[Any]:
    """Text; a value that is not UTF-8 (Parquet does not check) stays bytes, so that it is never sent by mistake."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_text(raw) for raw in array.cast(pa.large_binary()).to_pylist()]


def _text(raw: bytes | None) -> str | bytes | None:
    try:
        return raw if raw is None else raw.decode()
    except UnicodeDecodeError:
        return raw


def _times(array: pa.Array) -> list[Any]:
    of = array.type
    if kind.is_duration(of):
        return list(array.cast(pa.int64()).to_pylist())
    if kind.is_interval(of):
        return [None if value is None else list(value) for value in array.to_pylist()]
    zoned = kind.is_timestamp(of) and of.tz is not None
    if zoned:
        array = array.view(pa.timestamp(of.unit))  # the same count since the epoch, read as UTC: needs no zone data
    end = "Z" if zoned else ""
    return [None if text is None else text.replace(" ", "T") + end for text in array.cast(pa.string()).to_pylist()]


def _others(array: pa.Array) -> list[Any]:
    of = array.type
    if kind.is_decimal(of):
        return [None if value is None else format(value, "f") for value in array.to_pylist()]
    if kind.is_dictionary(of):
        return values(array.dictionary_decode())
    if isinstance(of, pa.BaseExtensionType):
        return values(array.storage)
    if kind.is_run_end_encoded(of):
        return values(pc.run_end_decode(array))
    if kind.is_struct(of):
        return _structs(array)
    if kind.is_map(of):
        return _maps(array)
    if kind.is_nested(of) and not kind.is_union(of):
        return _split(values(array.flatten()), pc.list_value_length(array).to_pylist())
    return [None if value is None else str(value) for value in array.to_pylist()]


def _structs(array: pa.Array) -> list[Any]:
    names = [field.name for field in array.type]
    fields = [values(field) for field in array.flatten()] if names else [[None] * len(array)]
    rows = [dict(zip(names, row, strict=False)) for row in zip(*fields, strict=True)]
    return [row if there else None for row, there in zip(rows, array.is_valid().to_pylist(), strict=True)]


def _maps(array: pa.Array) -> list[Any]:
    pairs = values(array.cast(pa.list_(pa.struct([("key", array.type.key_type), ("value", array.type.item_type)]))))
    return [None if pair is None else _mapped(pair) for pair in pairs]


def _mapped(pairs: list[dict[str, Any]]) -> Any:
    if all(isinstance(pair["key"], str) for pair in pairs):
        return {pair["key"]: pair["value"] for pair in pairs}
    return [[pair["key"], pair["value"]] for pair in pairs]


def _split(flat: list[Any], lengths: list[int | None]) -> list[Any]:
    rest = iter(flat)
    return [None if length is None else list(islice(rest, length)) for length in lengths]
