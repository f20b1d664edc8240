"""Replies come back byte for byte, whatever they were packed with, and damage is a clear line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from store_support import answer, ask, closed, keep_all, keeping, number, opened, request, want

from batchrun.errors import StorageError
from batchrun.store import view as view_module
from batchrun.store.bodies import LEVEL, SAMPLES, Packer, Unpacker, train
from batchrun.store.store import Store
from batchrun.store.till import Till
from batchrun.store.view import View

TEXT = "the of a light rain falls on quiet hills while seven birds count their small bright stones again"
WORDS = TEXT.split()


def reply(seed: int) -> bytes:
    dice = random.Random(seed)
    text = " ".join(dice.choices(WORDS, k=60))
    body = {
        "id": f"{dice.getrandbits(64):x}",
        "object": "chat.completion",
        "created": 1_700_000_000 + seed,
        "model": "openai/gpt-oss-20b",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 60},
    }
    return json.dumps(body).encode()


ODD = [b"", b"x", b"\0" * 5000, "żółć 🦆".encode(), random.Random(3).randbytes(3000), b"a" * 100_000]


async def kept(store: Store, first: int, bodies: Sequence[bytes]) -> None:
    await keep_all(store, [answer(request(first + n), body=body) for n, body in enumerate(bodies)])


def read(path: Path) -> list[bytes | None]:
    with View(str(path)) as view:
        return [outcome.body for outcome in view.outcomes()]


async def test_replies_come_back_byte_for_byte_before_and_after_a_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = await opened(path)
    bodies = [*ODD, *(reply(n) for n in range(400)), *ODD]
    await want(store, [request(row) for row in range(2 * len(bodies))])
    async with keeping(store) as keeper:
        for first, last in ((0, 200), (200, 350), (350, len(bodies))):
            numbered = enumerate(bodies[first:last], start=first)
            await asyncio.gather(*(keeper.keep(answer(request(n), body=body)) for n, body in numbered))
            assert number(path, "select count(*) from body where dictionary is not null") == max(0, last - 350)
    await closed(store)
    store = await opened(path)
    await kept(store, len(bodies), bodies)
    await closed(store)
    assert read(path) == bodies * 2
    used = dict(ask(path, "select dictionary, count(*) from body group by 1"))
    assert set(used) == {None, 1}
    assert used[None] == 350
    assert number(path, f"select count(dictionary) from body where id > {len(bodies)}") == len(bodies)
    assert number(path, "select count(*) from dictionary") == 1


async def test_a_dictionary_makes_replies_clearly_smaller(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = await opened(path)
    await want(store, [request(row) for row in range(700)])
    await kept(store, 0, [reply(n) for n in range(350)])
    await kept(store, 350, [reply(n) for n in range(350, 700)])
    await closed(store)
    (plain,), (small,) = (
        ask(path, f"select avg(length(reply)) from body where dictionary is {which}")[0] for which in ("null", "1")
    )
    assert small < 0.75 * plain


def damage(path: Path, sql: str, *params: object) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql, params)


async def made(path: Path, answers: int) -> None:
    store = await opened(path)
    await want(store, [request(row) for row in range(answers)])
    for first in range(0, answers, SAMPLES):
        await kept(store, first, [reply(n) for n in range(first, min(answers, first + SAMPLES))])
    await closed(store)


HARM = {
    "cut": "update body set reply = substr(reply, 1, length(reply) - 9) where id = {id}",
    "empty": "update body set reply = x'' where id = {id}",
    "rubbish": "update body set reply = randomblob(200) where id = {id}",
    "of another row": "update body set reply = (select reply from body where id = {id} - 1) where id = {id}",
    "gone": "delete from body where id = {id}",
    "a wrong checksum": "update paid set checksum = checksum + 1 where id = {id}",
    "no dictionary": "update body set dictionary = null where id = {id}",
    "a missing dictionary": "update body set dictionary = 9 where id = {id}",
    "a huge claim": "update body set reply = x'28b52ffde0ffffffffffffff7f010000' where id = {id}",
}


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("harm", HARM)
async def test_a_damaged_reply_is_a_clear_line_with_its_row(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await made(path, SAMPLES + 20)
    damage(path, HARM[harm].format(id=SAMPLES + 11))
    with View(str(path)) as view:
        outcomes = view.outcomes()
        assert [next(outcomes).row for _ in range(SAMPLES + 10)] == list(range(SAMPLES + 10))
        with pytest.raises(StorageError, match=rf"reply of row {SAMPLES + 10} in the checkpoint") as caught:
            next(outcomes)
    assert caught.value.exit_code == 11


async def test_any_byte_of_a_reply_may_be_damaged_and_none_brings_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await made(path, SAMPLES + 1)
    ((dictionary, frame, checksum, content),) = ask(
        path,
        "select d.id, reply, checksum, content from body join paid using (id) join dictionary d on d.id = dictionary",
    )
    unpacker = Unpacker({dictionary: content})
    for place in range(len(frame)):
        for bit in range(8):
            harmed = frame[:place] + bytes([frame[place] ^ 1 << bit]) + frame[place + 1 :]
            with contextlib.suppress(StorageError):
                # A bit that changes nothing of the reply may pass.
                assert view_module._unpacked(unpacker, 0, dictionary, harmed, checksum) == reply(SAMPLES)


@pytest.mark.parametrize("content", [b"", b"x", b"\x37\xa4\x30\xec" + bytes(200)])
async def test_a_damaged_dictionary_is_a_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await made(path, SAMPLES + 5)
    damage(path, "update dictionary set content = ?", content)
    with pytest.raises(StorageError), View(str(path)) as view:
        _ = list(view.outcomes())
    store = await opened(path)
    with contextlib.suppress(StorageError):  # or it is taken, and the replies packed with it can be read
        await Till.on(store)
    await store.release()


async def test_a_dictionary_that_comes_while_someone_reads_does_not_disturb_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    await made(path, 3)
    content = train([reply(n) for n in range(SAMPLES)])
    assert content is not None

    def meanwhile(dictionaries: dict[int, bytes]) -> Unpacker:
        packer = Packer({1: content})
        damage(path, "insert into dictionary values (1, ?)", content)
        damage(path, "update body set dictionary = 1, reply = ? where id = 3", packer.pack(reply(2))[1])
        return Unpacker(dictionaries)

    monkeypatch.setattr(view_module, "Unpacker", meanwhile)
    assert read(path) == [reply(n) for n in range(3)]


def test_replies_with_nothing_in_common_bring_no_dictionary_and_no_harm() -> None:
    packer = Packer({})
    for _ in range(SAMPLES):
        assert packer.pack(b"")[0] is None
    samples = packer.ready_samples()
    assert samples is not None
    assert train(samples) is None
    assert packer.ready_samples() is None
    assert zstandard.ZstdDecompressor().decompress(packer.pack(b"later")[1]) == b"later"


def test_long_replies_are_packed_but_teach_nothing() -> None:
    packer = Packer({})
    for _ in range(SAMPLES + 1):
        packer.pack(b"long" * 10_000)
    assert packer.ready_samples() is None
    assert LEVEL == 3
