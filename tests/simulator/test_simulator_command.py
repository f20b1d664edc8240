"""`batchrun simulate` and its script."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest
from click.testing import CliRunner

from batchrun.cli.simulate import _discounts, _settings, simulate
from batchrun.simulator import Fault, FaultKind, Headers, Settings, SettingsError
from batchrun.simulator.settings import parse_script

PROGRAM = "from batchrun.cli.simulate import simulate; simulate()"


async def started(*options: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        "--port",
        "0",
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": "."},
    )
    return process, (await process.stdout.readline()).decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_even_with_a_hanging_request(number, tmp_path):
    script = tmp_path / "hang.toml"
    script.write_text('[[fault]]\nkind = "hang"\n')
    process, line = await started("--json", "--latency", "0", "--script", str(script))
    url = json.loads(line)["url"]
    body = {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "x"}]}
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer x"}) as session:
        hanging = asyncio.create_task(session.post(f"{url}/v1/chat/completions", json=body))
        for _ in range(1000):
            async with session.get(f"{url}/_simulator/account") as response:
                if (await response.json())["answers"]:
                    break
        process.send_signal(number)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
        await asyncio.gather(hanging, return_exceptions=True)
    process.stdin.close()


async def test_with_parent_it_ends_with_its_standard_input():
    process, line = await started("--json", "--with-parent")
    assert json.loads(line)["pid"] == process.pid
    process.stdin.close()
    async with asyncio.timeout(5):
        assert await process.wait() == 0


async def test_without_json_it_says_in_two_lines_how_to_use_it():
    process, first = await started("--with-parent")
    second = (await process.stdout.readline()).decode()
    process.stdin.close()
    await process.wait()
    url = first.split()[4]
    assert url.startswith("http://127.0.0.1:")
    assert f"--base-url {url}" in second


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "0.0.0.0:8900"], "this machine only"),
        (["--port", "many"], "a port is a number"),
        (["--script", "no-such.toml"], "no-such.toml: cannot be read"),
        (["--latency", "-1"], "latency must not be negative"),
        (["--state", "/no/such/folder/state"], "cannot be opened"),
        (["--batch-speed", "0"], "batch_speed must be more than 0"),
        (["--batch-discount", "0.5"], "write MODEL=0.5"),
        (["--batch-discount", "m=half"], "write MODEL=0.5"),
        (["--batch-discount", "m=2"], "the discount of m must be above 0"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_with_exit_code_2(options, words):
    result = CliRunner().invoke(simulate, ["--port", "0", *options])
    assert result.exit_code == 2
    assert words in result.output
    assert result.output.count("\n") == 1


def test_batch_options_become_settings_beside_the_usual_discount():
    settings = _settings(None, {"batch_speed": 5.0}, _discounts(("openai/gpt-oss-20b=0.25",)))
    assert settings.batch_speed == 5
    assert settings.batch_discounts == {"meta-llama/Llama-3.3-70B-Instruct-Turbo": 0.5, "openai/gpt-oss-20b": 0.25}


def test_a_port_in_use_is_said_in_one_line_with_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(simulate, ["--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "cannot be used" in result.output
    assert result.output.count("\n") == 1


def test_the_help_fits_80_columns_and_needs_no_server_library():
    program = "import sys, batchrun.cli.simulate; print('aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert done.stdout == "False\n"
    lines = CliRunner().invoke(simulate, ["--help"], terminal_width=80).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("with-parent" in line for line in lines)


def test_a_script_becomes_settings():
    text = """
        [server]
        latency = 0.5
        [account]
        credits = 2
        [limits]
        requests_per_second = 10
        headers = "all"
        [[fault]]
        kind = "overload"
        start = 5
        seconds = 10
    """
    assert parse_script(text) == Settings(
        latency=0.5,
        credits=2.0,
        requests_per_second=10.0,
        headers=Headers.ALL,
        faults=(Fault(FaultKind.OVERLOAD, start=5.0, seconds=10.0),),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[severs]", "unknown section: 'severs'; the nearest known is 'server'"),
        ("[limits]\nslot = 1", r"unknown setting in \[limits\]: 'slot'; the nearest known is 'slots'"),
        ('[[fault]]\nkind = "overlaod"', "unknown kind of fault: 'overlaod'; the nearest known is 'overload'"),
        ('[[fault]]\nkind = "hang"\ncuont = 1', "unknown word in a fault: 'cuont'; the nearest known is 'count'"),
        ("[[fault]]\nafter = 1", "a fault needs a kind"),
        ('[[fault]]\nkind = "status"\nstatus = 99', "status must be between 200 and 599"),
        ('[[fault]]\nkind = "status"\nstatus = "x"', "Expected `int . null`, got `str`"),
        (
            '[[fault]]\nkind = "too_long"\nwords = "openia"',
            "unknown choice of words: 'openia'; the nearest .* 'openai'",
        ),
        ('[[fault]]\nkind = "too_long"\nstatus = 404', "status of too_long must be 400, 403, 413 or 422, not 404"),
        ('[[fault]]\nkind = "hang"\ncontext = 512', "words and context are words of too_long only"),
        ('[[fault]]\nkind = "answered_by"', "served_by is the word of answered_by, which needs it"),
        ('[[fault]]\nkind = "hang"\nserved_by = "x"', "served_by is the word of answered_by"),
        ('[[fault]]\nkind = "hang"\nfirst = 0', "first must be at least 1"),
        (
            '[[fault]]\nkind = "overload"\nmodel = "openai/gpt-oss-20"',
            "the nearest model known is 'openai/gpt-oss-20b'",
        ),
        ('[[batch_fault]]\nkind = "broken_put"\nmodel = "x"', "model is a word of what becomes of a job"),
        ('[server]\ncontext_words = "vlm"', "unknown choice of context_words: 'vlm'; the nearest known is 'vllm'"),
        ("[server]\ncontext_status = 404", "context_status must be 400, 403, 413 or 422"),
        ("[server]\nmodels_status = 200", "models_status must be between 400 and 599"),
        ('[limits]\nheaders = "some"', "Invalid enum value 'some'"),
        ("[server]\nlatency = true", "Expected `float`, got `bool`"),
        ("server = 1", r"write \[server\]"),
        ("[limits]\ntokens_per_second = 1\ntokens_per_minute = 1", "not both"),
        ("][", "not TOML"),
    ],
)
def test_a_wrong_script_says_what_is_wrong(text, words):
    with pytest.raises(SettingsError, match=words):
        parse_script(text)
