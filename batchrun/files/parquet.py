"""Parquet as rows, streamed: each row keeps hold of its Arrow batch, so that the output can pass its values on as is.

How Arrow values become JSON ones is `arrow`'s affair. pyarrow is imported when the first Parquet file is opened.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from batchrun.errors import InputError
from batchrun.files.row import Row

# A batch of rows should take no more than about this much, and is never larger than a chunk.
BATCH_BYTES = 8_000_000
BATCH_ROWS = 2000

_BUFFER = 1 << 20


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Around everything that reads the Parquet file `path`.

    Raises:
        InputError: it is cut short, damaged, not Parquet, or cannot be read.
    """
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise InputError(
            f"{path} is cut short, damaged or not Parquet at all.", "Fetch or write the file again."
        ) from error
    except OSError as error:
        if error.errno is None:  # Arrow's own way of saying that bytes are missing
            raise InputError(f"{path} is cut short or damaged.", "Fetch or write the file again.") from error
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def opened(path: str) -> Any:
    """The file as a `pyarrow.parquet.ParquetFile` that reads a piece at a time.

    Raises:
        InputError: as `reading`, or two columns have one name.
    """
    with reading(path):
        from pyarrow.parquet import ParquetFile

        file = ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        file.close()
        raise InputError(f"{path} has two columns named {twice!r}.", "Give one of them another name.")
    return file


class Groups:
    """One open Parquet file: either all of it in chunks, or ascending rows picked out of it."""

    def __init__(self, path: str, name: str, first: int) -> None:
        self._path = path
        self._origin = f"{name} row "
        self.first = self._next = first
        self._file = opened(path)
        self._release = _release()
        self._batches = self._walk(BATCH_ROWS)
        self._batch: Any = None
        self._start = first  # the number of the first row of that batch

    @property
    def rows(self) -> int:
        """Rows in the file."""
        count: int = self._file.metadata.num_rows
        return count

    def close(self) -> None:
        """Let go of the file."""
        self._batches = iter(())
        self._file.close()

    def chunks(self, size: int) -> Iterator[list[Row]]:
        """All rows, at most `size` at a time and fewer when they are long."""
        with reading(self._path):
            for start, batch in self._walk(min(size, BATCH_ROWS)):
                yield self._rows(start, batch, range(batch.num_rows))

    def take(self, numbers: Sequence[int]) -> Iterator[Row]:
        """The rows with these ascending numbers, up to the end of the file; row groups between them are not read."""
        done = 0
        with reading(self._path):
            while done < len(numbers) and self._reach(numbers[done]):
                end = bisect_left(numbers, self._start + self._batch.num_rows, lo=done)
                wanted = [number - self._start for number in numbers[done:end]]
                for row in self._rows(self._start, self._batch, wanted):
                    self._next = row.number + 1
                    yield row
                done = end

    def _reach(self, number: int) -> bool:
        """Make the batch that holds row `number` the current one; False past the end."""
        if number < self._next:
            raise ValueError(f"row {number} was asked for after row {self._next - 1}")
        while self._batch is None or number >= self._start + self._batch.num_rows:
            self._next = max(self._next, number)  # lets the walk leave out whole row groups
            self._start, self._batch = next(self._batches, (0, None))
            if self._batch is None:
                return False
        return True

    def _walk(self, size: int) -> Iterator[tuple[int, Any]]:
        start = self.first
        for index in range(self._file.metadata.num_row_groups):
            group = self._file.metadata.row_group(index)
            end = start + group.num_rows
            if end > self._next:
                for batch in self._file.iter_batches(_batch_rows(group, size), row_groups=[index], use_threads=False):
                    yield start, batch
                    start += batch.num_rows
                    del batch
                    self._release()
            start = end

    def _rows(self, start: int, batch: Any, indices: Sequence[int]) -> list[Row]:
        from batchrun.files import arrow

        whole = len(indices) == batch.num_rows
        picked = batch if whole else batch.take(indices)
        position = start - self.first + 1
        return [
            Row(start + index, self._origin, position + index, cells, None, "", batch, index)
            for index, cells in zip(indices, arrow.cells(picked), strict=True)
        ]


def _batch_rows(group: Any, size: int) -> int:
    """How many rows to read at once: `size`, or fewer when they are long by what the file says of itself."""
    mean: int = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(size, BATCH_ROWS, BATCH_BYTES // max(1, mean)))


def _release() -> Callable[[], None]:
    """Gives back to the system what Arrow's pool holds unused: it would grow by a third over a long file."""
    import pyarrow as pa

    release: Callable[[], None] = pa.default_memory_pool().release_unused
    return release
