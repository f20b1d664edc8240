"""A test that fails must not leave a connection behind: its thread would keep the whole suite from ending."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import store_support


@pytest.fixture(autouse=True)
async def _let_go() -> AsyncIterator[None]:
    yield
    while store_support.OPENED:
        await store_support.OPENED.pop().release()
