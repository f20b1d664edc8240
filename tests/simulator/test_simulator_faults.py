"""Every fault as a plain client sees it, and when faults strike."""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest
from simulator_client import MODEL, Got, client_of

from batchrun.simulator import Fault, FaultKind, Settings, Simulator
from batchrun.simulator.faults import Moment, Script

K = FaultKind
FAST = Settings(latency=0.0, refusal_latency=0.0)
BROKEN_CONNECTION = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
BROKEN_BODY = (aiohttp.ClientPayloadError, aiohttp.ClientOSError)


@dataclass(frozen=True)
class Seen:
    """What a client sees: a status, or an exception; and what the ledger holds."""

    status: int | None = None
    raises: Any = None
    charged: bool = False
    delivered: bool = False


SEEN = {
    K.CREDITS_END: Seen(402),
    K.STATUS: Seen(500),
    K.OVERLOAD: Seen(503),
    K.THROTTLE: Seen(429),
    K.UNKNOWN_MODEL: Seen(404),
    K.TOO_LONG: Seen(400),
    K.REDIRECT: Seen(307),
    K.ERROR_OBJECT: Seen(200),
    K.RESET_BEFORE: Seen(raises=BROKEN_CONNECTION),
    K.RESET_DURING: Seen(raises=BROKEN_CONNECTION, charged=True),
    K.RESET_AFTER: Seen(raises=BROKEN_BODY, charged=True),
    K.CUT_BODY: Seen(raises=aiohttp.ClientPayloadError, charged=True),
    K.BROKEN_JSON: Seen(200, charged=True),
    K.NO_CHOICES: Seen(200, charged=True),
    K.WRONG_CONTENT_TYPE: Seen(200, charged=True, delivered=True),
    K.BAD_UTF8: Seen(200, charged=True),
    K.BAD_GZIP: Seen(raises=aiohttp.ClientPayloadError, charged=True),
    K.HANG: Seen(raises=TimeoutError, charged=True),
    K.TRICKLE: Seen(200, charged=True, delivered=True),
    K.HUGE_BODY: Seen(200, charged=True, delivered=True),
    K.TWO_CONTENT_LENGTHS: Seen(raises=aiohttp.ClientResponseError, charged=True),
    K.BIG_HEADER: Seen(raises=aiohttp.ClientResponseError, charged=True),
    K.NO_USAGE: Seen(200, charged=True, delivered=True),
    K.NULL_CONTENT: Seen(200, charged=True, delivered=True),
    K.ANSWERED_BY: Seen(200, charged=True, delivered=True),
    K.NOT_JSON: Seen(200, charged=True, delivered=True),
    K.MISFIT: Seen(200, charged=True, delivered=True),
    K.FENCED: Seen(200, charged=True, delivered=True),
}


@pytest.mark.parametrize("kind", FaultKind)
async def test_each_fault_is_seen_once_and_the_ledger_tells_what_it_cost(kind):
    seen = SEEN[kind]
    served_by = "another/model" if kind is K.ANSWERED_BY else None
    faults = (Fault(kind, count=1, pause=0.0, after=0, served_by=served_by),)
    async with Simulator(Settings(latency=0.0, refusal_latency=0.0, faults=faults)) as sim, client_of(sim) as client:
        if seen.raises:
            with pytest.raises(seen.raises):
                await asyncio.wait_for(client.chat("struck"), 0.3 if kind is K.HANG else 10)
        else:
            assert (await client.chat("struck")).status == seen.status
        assert len(sim.account.charges) == seen.charged
        assert [charge.delivered for charge in sim.account.charges] == [seen.delivered] * seen.charged
        assert (await client.chat("spared")).status == 200
        assert len(sim.account.charges) == seen.charged + 1


async def struck(fault: Fault) -> Got:
    async with Simulator(Settings(latency=0.0, refusal_latency=0.0, faults=(fault,))) as sim, client_of(sim) as client:
        return await client.chat("struck")


async def test_the_bodies_of_refusals_are_the_services_own():
    assert (await struck(Fault(K.OVERLOAD))).error["message"] == "The server is overloaded or not ready yet."
    assert (await struck(Fault(K.UNKNOWN_MODEL))).error["code"] == "model_not_available"
    assert (await struck(Fault(K.STATUS, status=401))).error["code"] == "invalid_api_key"
    assert (await struck(Fault(K.CREDITS_END))).error["type"] == "credit_limit"
    assert (await struck(Fault(K.ERROR_OBJECT))).error["message"] == "Internal Server Error"


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 500, 503, 504, 524])
async def test_any_status_can_be_had_and_has_an_error_object(status):
    got = await struck(Fault(K.STATUS, status=status))
    assert (got.status, set(got.error)) == (status, {"message", "type", "param", "code"})


async def test_a_refusal_takes_another_body_and_headers():
    fault = Fault(
        K.STATUS, status=502, body="<html>Bad gateway</html>", headers={"Content-Type": "text/html"}, reset=1.5
    )
    got = await struck(fault)
    assert got.body == b"<html>Bad gateway</html>"
    assert got.headers["Content-Type"] == "text/html"
    assert got.headers["x-ratelimit-reset"] == "1.5"
    assert (await struck(Fault(K.THROTTLE, retry_after=2))).headers["Retry-After"] == "2"


async def test_a_redirect_says_where_to():
    assert (await struck(Fault(K.REDIRECT, location="/v1/away"))).headers["Location"] == "/v1/away"


async def test_broken_replies_are_broken_as_they_say():
    with pytest.raises(msgspec.DecodeError):
        _ = (await struck(Fault(K.BROKEN_JSON))).json
    with pytest.raises(UnicodeDecodeError):
        (await struck(Fault(K.BAD_UTF8))).body.decode()
    assert (await struck(Fault(K.NO_CHOICES))).json["choices"] == []


async def test_strange_but_good_replies_can_be_read():
    plain = await struck(Fault(K.WRONG_CONTENT_TYPE))
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert plain.text.startswith("About struck:")
    assert (await struck(Fault(K.NO_USAGE))).json["usage"] is None
    message = (await struck(Fault(K.NULL_CONTENT))).json["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning"].startswith("About struck:")
    huge = await struck(Fault(K.HUGE_BODY, size=3_000_000))
    assert len(huge.body) == 3_000_000
    assert huge.text.startswith("About struck:")


async def bytes_until_the_end(fault: Fault) -> tuple[bytes, bool]:
    """What comes over a bare socket, and whether the end was a reset."""
    body = msgspec.json.encode({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Authorization: Bearer x", f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, "", ""])
    loop = asyncio.get_running_loop()
    got = b""
    async with Simulator(Settings(latency=0.0, faults=(fault,))) as sim:
        with socket.create_connection(("127.0.0.1", int(sim.url.rpartition(":")[2]))) as sock:
            sock.setblocking(False)
            await loop.sock_sendall(sock, head.encode() + body)
            try:
                while piece := await loop.sock_recv(sock, 65_536):
                    got += piece
            except ConnectionResetError:
                return got, True
    return got, False


async def test_a_reset_is_a_real_reset_and_a_cut_a_clean_close():
    assert await bytes_until_the_end(Fault(K.RESET_BEFORE)) == (b"", True)
    assert await bytes_until_the_end(Fault(K.RESET_DURING)) == (b"", True)
    cut, was_reset = await bytes_until_the_end(Fault(K.CUT_BODY))
    head, _, body = cut.partition(b"\r\n\r\n")
    assert not was_reset
    assert 0 < len(body) < int(head.rpartition(b"Content-Length: ")[2])


async def test_a_reset_after_has_sent_the_head_and_part_of_the_body():
    got, was_reset = await bytes_until_the_end(Fault(K.RESET_AFTER))
    assert was_reset
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"id"' in got


async def test_two_content_lengths_are_on_the_wire():
    got, _ = await bytes_until_the_end(Fault(K.TWO_CONTENT_LENGTHS))
    assert got.count(b"Content-Length: ") == 2


async def test_a_hang_may_be_free_and_ends_when_the_client_goes():
    faults = (Fault(K.HANG, charged=False, count=1),)
    async with Simulator(Settings(latency=0.0, faults=faults)) as sim, client_of(sim) as client:
        call = asyncio.create_task(client.chat())
        await sim.requested(1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(5):
            while sim.account.in_flight:
                await client.get("/_simulator/account")
        assert sim.account.charges == []
        assert sim.account.statuses == {0: 1}


async def test_a_server_with_hanging_and_slow_calls_stops_at_once():
    sim = Simulator(Settings(latency=60.0, faults=(Fault(K.HANG, content="hang", charged=False),)))
    async with sim, client_of(sim) as client:
        sim.hold()
        calls = [asyncio.create_task(client.chat(content)) for content in ("hang", "slow")]
        await sim.requested(2)
        began = asyncio.get_running_loop().time()
        await sim.__aexit__(None, None, None)
        assert asyncio.get_running_loop().time() - began < 2
        assert all(isinstance(got, aiohttp.ClientError) for got in await asyncio.gather(*calls, return_exceptions=True))


async def test_credits_end_after_so_many_answers_until_topped_up():
    settings = Settings(latency=0.0, refusal_latency=0.0, faults=(Fault(K.CREDITS_END, after=3),))
    async with Simulator(settings) as sim, client_of(sim) as client:
        assert [(await client.chat()).status for _ in range(5)] == [200, 200, 200, 402, 402]
        assert sim.account.after_first_402 == 1
        await client.post("/_simulator/top-up", {"usd": 1})
        assert [(await client.chat()).status for _ in range(3)] == [200] * 3
        assert sim.account.statuses == {200: 6, 402: 2}


async def test_a_top_up_before_credits_end_does_not_prevent_it():
    settings = Settings(latency=0.0, refusal_latency=0.0, faults=(Fault(K.CREDITS_END, after=1),))
    async with Simulator(settings) as sim, client_of(sim) as client:
        sim.top_up(1.0)
        assert [(await client.chat()).status for _ in range(2)] == [200, 402]


@pytest.mark.parametrize(
    ("fault", "struck_numbers"),
    [
        (Fault(K.STATUS), [1, 2, 3, 4, 5, 6]),
        (Fault(K.STATUS, after=4), [5, 6]),
        (Fault(K.STATUS, after=1, count=2), [2, 3]),
        (Fault(K.STATUS, every=3), [3, 6]),
        (Fault(K.STATUS, after=1, every=2), [3, 5]),
        (Fault(K.STATUS, content="4"), [4]),
        (Fault(K.STATUS, first=1), [1, 2, 3, 4, 5, 6]),
        (Fault(K.STATUS, start=2.0, seconds=3.0), [2, 3, 4]),
    ],
)
def test_a_fault_strikes_when_its_conditions_hold(fault, struck_numbers):
    script = Script([fault], seed=0)
    moments = [Moment(number, 0, float(number), f"prompt {number}") for number in range(1, 7)]
    assert [moment.number for moment in moments if script.pick(moment)] == struck_numbers


def test_a_probability_is_seeded():
    def run(seed: int) -> list[bool]:
        script = Script([Fault(K.STATUS, probability=0.3)], seed)
        return [script.pick(Moment(number, 0, 0.0, "")) is not None for number in range(1000)]

    assert run(1) == run(1) != run(2)
    assert 200 < sum(run(1)) < 400


async def test_faults_are_replaced_while_it_runs_and_a_bad_one_changes_nothing():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        sim.play([Fault(K.OVERLOAD)])
        assert (await client.chat()).status == 503
        bad = await client.post("/_simulator/faults", [{"kind": "overlode"}])
        assert (bad.status, (await client.chat()).status) == (400, 503)
        assert "'overload'" in bad.json["error"]
        assert (await client.post("/_simulator/faults", b'[[fault]]\nkind = "throttle"\ncount = 1')).json == {
            "faults": 1
        }
        assert [(await client.chat()).status for _ in range(2)] == [429, 200]
        assert (await client.post("/_simulator/faults", {"fault": [{"kind": "status", "status": 504}]})).status == 200
        assert (await client.chat()).status == 504
