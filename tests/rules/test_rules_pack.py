"""Rows into batch files: when a file is full, and whose a result line is."""

from __future__ import annotations

import pytest

from batchrun.rules import pack
from batchrun.rules.pack import Bounds


def test_a_line_fits_up_to_the_provider_s_limit_with_room_for_its_frame() -> None:
    assert pack.fits_a_line(b"x" * (pack.LARGEST_LINE - pack.FRAME))
    assert not pack.fits_a_line(b"x" * (pack.LARGEST_LINE - pack.FRAME + 1))


def test_the_frame_has_room_for_the_longest_custom_id() -> None:
    around = len('{"custom_id":"') + 64 + len('","body":') + len("}\n")
    assert around <= pack.FRAME
    assert pack.LARGEST_LINE < 10_000_000
    assert pack.LARGEST_FILE < 100_000_000


def test_a_file_is_full_by_lines_or_by_bytes() -> None:
    bounds = Bounds(lines=3, size=1000)
    assert not pack.is_full(2, 500, b"x" * 400, bounds)
    assert pack.is_full(3, 500, b"x", bounds)
    assert pack.is_full(2, 500, b"x" * 401, bounds)


def test_an_empty_file_takes_any_line() -> None:
    assert not pack.is_full(0, 0, b"x" * 5000, Bounds(lines=3, size=1000))


@pytest.mark.parametrize("line", [0, 7, 49_999])
def test_a_line_is_found_again_by_its_name(line: int) -> None:
    name = pack.custom_id("abc123", line)
    assert len(name) <= 64
    assert pack.line_number("abc123", name) == line


@pytest.mark.parametrize(
    "name",
    [
        "", "-", "abc123", "abc123-", "-7", "7", "abc124-7", "abc123-x", "abc123--7", "abc123-7-7", "abc123-7 ",
        "abc123-\u0667", "abc123-\u00b2", "abc123-1_0", "abc123-+7", "ABC123-7", "abc123-07", "abc123-" + "9" * 5000,
    ],
)  # fmt: skip
def test_a_name_that_is_none_of_this_batch_s_is_nobody_s(name: str) -> None:
    assert pack.line_number("abc123", name) is None
