"""Credits, top-ups, the ledger and its state file."""

import asyncio
import json
import os
import signal
import stat
import sys

import pytest
from simulator_client import MODEL, client_of

from batchrun.simulator import Fault, FaultKind, Settings, SettingsError, Simulator

FAST = Settings(latency=0.0, refusal_latency=0.0)


def with_credits(usd: float, **more: object) -> Settings:
    return Settings(latency=0.0, refusal_latency=0.0, credits=usd, **more)


async def test_when_the_balance_is_gone_calls_get_402_and_are_not_charged():
    async with Simulator(with_credits(0.000_02)) as sim, client_of(sim) as client:
        statuses = [(await client.chat(f"q{i}", max_tokens=20)).status for i in range(8)]
        refused = await client.chat()
        account = sim.account
        assert statuses == sorted(statuses)
        assert set(statuses) == {200, 402}
        assert account.answers == statuses.count(200)
        assert account.balance == account.bought - account.spent <= 0
        assert account.after_first_402 == statuses.count(402)
    assert (refused.error["type"], refused.error["code"]) == ("credit_limit", None)


async def test_a_top_up_over_the_control_endpoint_lets_calls_through_again():
    async with Simulator(with_credits(0.0)) as sim, client_of(sim) as client:
        assert (await client.chat()).status == 402
        bad = await client.post("/_simulator/top-up", {"usd": "lots"})
        good = await client.post("/_simulator/top-up", {"usd": 2.5})
        assert (bad.status, good.json["balance"]) == (400, 2_500_000_000)
        assert (await client.chat()).status == 200


async def test_calls_in_flight_at_the_end_of_credits_are_finished_and_overdraw():
    async with Simulator(with_credits(0.000_001)) as sim, client_of(sim) as client:
        sim.hold()
        calls = [asyncio.create_task(client.chat(f"q{i}")) for i in range(5)]
        await sim.requested(5)
        sim.release()
        assert [got.status for got in await asyncio.gather(*calls)] == [200] * 5
        assert sim.account.balance < 0
        assert sim.account.peak_in_flight == 5
        assert sim.account.in_flight == 0


async def test_strict_calls_in_flight_get_402_instead():
    settings = with_credits(0.000_001, strict_in_flight=True)
    async with Simulator(settings) as sim, client_of(sim) as client:
        sim.hold()
        calls = [asyncio.create_task(client.chat(f"q{i}")) for i in range(5)]
        await sim.requested(5)
        sim.release()
        assert sorted(got.status for got in await asyncio.gather(*calls)) == [200, 402, 402, 402, 402]
        assert sim.account.answers == 1


async def test_late_metering_lets_new_calls_overdraw():
    async with Simulator(with_credits(0.000_001, metering_delay=3600.0)) as sim, client_of(sim) as client:
        assert [(await client.chat()).status for _ in range(5)] == [200] * 5
        assert sim.account.spent > sim.account.bought == sim.account.balance


async def test_the_control_endpoints_show_account_and_ledger():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        for i in range(3):
            await client.chat(f"q{i}")
        account = (await client.get("/_simulator/account")).json
        ledger = [json.loads(line) for line in (await client.get("/_simulator/ledger")).body.splitlines()]
    assert (account["answers"], account["delivered"], account["bought"]) == (3, 3, None)
    assert account["requests_by_status"] == {"200": 3}
    assert [charge["number"] for charge in ledger] == [1, 2, 3]
    assert sum(charge["nano"] for charge in ledger) == account["spent"]


async def test_reached_returns_when_so_many_answers_are_charged():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        waiter = asyncio.create_task(sim.reached(answers=2))
        await client.chat("one")
        assert not waiter.done()
        await client.chat("two")
        await waiter


async def test_a_call_whose_client_hung_up_is_charged_and_not_delivered():
    async with Simulator(FAST) as sim, client_of(sim) as client:
        sim.hold()
        call = asyncio.create_task(client.chat("gone"))
        await sim.requested(1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await client.get("/_simulator/account")).json["in_flight"] == 1
        sim.release()
        await sim.reached(answers=1)
        assert (await client.chat("still here")).status == 200
        assert [charge.delivered for charge in sim.account.charges] == [False, True]


async def test_a_restart_remembers_charges_purchases_and_deliveries(tmp_path):
    state = tmp_path / "account.jsonl"
    async with Simulator(with_credits(1.0), state=state) as sim, client_of(sim) as client:
        await client.chat("a")
        sim.top_up(0.5)
        before = list(sim.account.charges)
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    async with Simulator(with_credits(1.0), state=state) as sim:
        assert sim.account.charges == before
        assert sim.account.bought == 1_500_000_000
        assert sim.account.balance == 1_500_000_000 - before[0].nano
    async with Simulator(with_credits(4.0), state=state) as sim:
        assert sim.account.bought == 4_000_000_000


async def test_a_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path):
    state = tmp_path / "account.jsonl"
    async with Simulator(FAST, state=state) as sim, client_of(sim) as client:
        await client.chat("a")
    whole = state.read_bytes()
    state.write_bytes(whole + whole.splitlines()[1][:40])
    async with Simulator(FAST, state=state) as sim, client_of(sim) as client:
        assert sim.account.answers == 1
        await client.chat("b")
    async with Simulator(FAST, state=state) as sim:
        assert sim.account.answers == 2


async def test_a_state_file_of_something_else_is_refused(tmp_path):
    state = tmp_path / "account.jsonl"
    state.write_text('{"hello": 1}\n')
    with pytest.raises(SettingsError, match="line 1 is not a record"):
        await Simulator(FAST, state=state).__aenter__()
    assert state.read_text() == '{"hello": 1}\n'


async def test_two_simulators_cannot_share_a_state_file(tmp_path):
    state = tmp_path / "account.jsonl"
    async with Simulator(FAST, state=state):
        with pytest.raises(SettingsError, match="another simulator"):
            await Simulator(FAST, state=state).__aenter__()


async def test_an_end_of_credits_survives_a_restart_until_credits_are_added(tmp_path):
    state = tmp_path / "account.jsonl"
    faults = (Fault(FaultKind.CREDITS_END, after=2),)
    async with Simulator(with_credits(1.0, faults=faults), state=state) as sim, client_of(sim) as client:
        assert [(await client.chat()).status for _ in range(3)] == [200, 200, 402]
    async with Simulator(with_credits(1.0, faults=faults), state=state) as sim, client_of(sim) as client:
        assert (await client.chat()).status == 402
    async with Simulator(with_credits(2.0, faults=faults), state=state) as sim, client_of(sim) as client:
        assert (await client.chat()).status == 200
    async with Simulator(with_credits(2.0, faults=faults), state=state) as sim, client_of(sim) as client:
        assert (await client.chat()).status == 200


async def test_a_killed_process_forgets_no_charge(tmp_path):
    state = tmp_path / "account.jsonl"
    program = "from batchrun.cli.simulate import simulate; simulate()"
    options = ["--port", "0", "--latency", "0", "--json", "--with-parent", "--credits", "1", "--state", str(state)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": "."},
    )
    answered = 0
    ready = json.loads(await process.stdout.readline())
    assert ready["pid"] == process.pid

    async def ask_for_ever(client, worker):
        nonlocal answered
        for number in range(100_000):
            await client.chat(f"{worker} {number}", model=MODEL)
            answered += 1
            if answered == 200:
                process.send_signal(signal.SIGKILL)

    sim = Simulator(FAST)
    sim.url = ready["url"]
    async with client_of(sim) as client:
        await asyncio.gather(*(ask_for_ever(client, worker) for worker in range(8)), return_exceptions=True)
    await process.wait()
    process.stdin.close()
    async with Simulator(with_credits(1.0), state=state) as again:
        assert answered <= again.account.answers <= answered + 8
        assert [charge.number for charge in again.account.charges] == list(range(1, again.account.answers + 1))
        assert again.account.bought == 1_000_000_000
