"""Rate limits, queueing and their headers."""

import asyncio

import pytest
from simulator_client import client_of

from batchrun.simulator import Headers, Settings, Simulator
from batchrun.simulator.limits import Limits, Turned

RATE = {
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-tokenlimit-limit",
    "x-tokenlimit-remaining",
}


def fast(**more: object) -> Settings:
    return Settings(latency=0.0, refusal_latency=0.0, **more)


def test_requests_pass_up_to_the_burst_and_then_at_the_rate():
    limits = Limits(fast(requests_per_second=2.0, burst=3.0), now=0.0)
    assert [limits.admit(0, now=0.0) for _ in range(4)] == [None, None, None, Turned(by_tokens=False, reset=0.5)]
    assert limits.admit(0, now=0.5) is None
    assert limits.admit(0, now=0.5) == Turned(by_tokens=False, reset=0.5)
    assert limits.admit(0, now=100.0) is None


def test_tokens_are_taken_when_used_and_may_overdraw():
    limits = Limits(fast(tokens_per_minute=60.0, token_burst=10.0), now=0.0)
    assert limits.admit(0, now=0.0) is None
    limits.use(30, now=0.0)
    assert limits.admit(0, now=0.0) == Turned(by_tokens=True, reset=21.0)
    assert limits.admit(0, now=21.0) is None


async def test_above_the_rate_comes_429_with_nothing_but_its_body():
    async with Simulator(fast(requests_per_second=0.001)) as sim, client_of(sim) as client:
        first, second = await client.chat(), await client.chat()
    assert (first.status, second.status) == (200, 429)
    assert second.error["type"] == "dynamic_request_limited"
    assert not {name.lower() for name in second.headers} & (RATE | {"retry-after"})


async def test_above_the_token_rate_comes_429_of_the_other_type():
    async with Simulator(fast(tokens_per_second=0.001)) as sim, client_of(sim) as client:
        assert [(await client.chat()).status for _ in range(2)] == [200, 429]
        assert (await client.chat()).error["type"] == "dynamic_token_limited"


async def test_one_models_limit_is_not_anothers():
    async with Simulator(fast(requests_per_second=0.001)) as sim, client_of(sim) as client:
        await client.chat()
        assert (await client.chat(model="openai/gpt-oss-120b")).status == 200


async def test_reset_headers_come_on_429_only_and_retry_after_when_wanted():
    settings = fast(requests_per_second=0.1, headers=Headers.RESET, retry_after=3.0)
    async with Simulator(settings) as sim, client_of(sim) as client:
        good, limited = await client.chat(), await client.chat()
    assert not {name.lower() for name in good.headers} & RATE
    assert 9 < float(limited.headers["x-ratelimit-reset"]) <= 10
    assert limited.headers["Retry-After"] == "3"
    assert "x-ratelimit-limit" not in limited.headers


async def test_all_headers_come_on_every_reply():
    settings = fast(requests_per_second=5.0, tokens_per_second=1000.0, headers=Headers.ALL)
    async with Simulator(settings) as sim, client_of(sim) as client:
        good, bad = await client.chat(), await client.post("/v1/chat/completions", b"{")
    assert {name.lower() for name in good.headers} >= RATE
    assert {name.lower() for name in bad.headers} >= RATE
    assert (good.headers["x-ratelimit-limit"], good.headers["x-ratelimit-remaining"]) == ("5", "4")
    assert int(good.headers["x-tokenlimit-remaining"]) < 1000


async def test_more_in_flight_than_allowed_get_429():
    async with Simulator(fast(max_in_flight=2)) as sim, client_of(sim) as client:
        sim.hold()
        calls = [asyncio.create_task(client.chat(f"q{i}")) for i in range(5)]
        await sim.requested(5)
        sim.release()
        assert sorted(got.status for got in await asyncio.gather(*calls)) == [200, 200, 429, 429, 429]


async def test_slots_make_calls_wait_and_refuse_none():
    async with Simulator(fast(slots=1)) as sim, client_of(sim) as client:
        sim.hold()
        calls = [asyncio.create_task(client.chat(f"q{i}")) for i in range(5)]
        await sim.requested(5)
        assert sim.account.in_flight == 5
        sim.release()
        assert [got.status for got in await asyncio.gather(*calls)] == [200] * 5


async def test_slots_of_one_take_the_latencies_one_after_another():
    async with Simulator(Settings(latency=0.05, sigma=0.0, slots=1)) as sim, client_of(sim) as client:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(client.chat(f"q{i}") for i in range(4)))
        assert loop.time() - began >= 0.2


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_latency_scatters_around_its_median(seed):
    async with Simulator(Settings(latency=0.02, sigma=0.5, seed=seed)) as sim, client_of(sim) as client:
        loop = asyncio.get_running_loop()
        times = []
        for number in range(9):
            began = loop.time()
            await client.chat(f"q{number}")
            times.append(loop.time() - began)
    assert 0.005 < sorted(times)[4] < 0.2
    assert max(times) > 1.2 * min(times)
