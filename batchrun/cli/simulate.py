"""`batchrun simulate`: words to settings, and serving until told to stop. The server itself is `batchrun.simulator`."""

import asyncio
import dataclasses
import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from batchrun.simulator import Settings

_DEFAULT_PORT = "8900"
_LOOPBACK = ("127.0.0.1", "localhost")
_HIGHEST_PORT = 65_535


class _Unusable(click.ClickException):
    """One line on standard error, exit code 2."""

    exit_code = 2


def _port(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """A port, or 127.0.0.1:PORT. Any other address is refused: no other machine may reach the simulator."""
    host, _, port = value.rpartition(":")
    if host and host not in _LOOPBACK:
        raise _Unusable(f"--port {value}: the simulator listens on this machine only (127.0.0.1)")
    if not port.isdecimal() or int(port) > _HIGHEST_PORT:
        raise _Unusable(f"--port {value}: a port is a number from 0 to {_HIGHEST_PORT}")
    return int(port)


@click.command()
@click.option("--port", default=_DEFAULT_PORT, callback=_port, metavar="N", help="Port on 127.0.0.1 (8900); 0: any.")
@click.option("--credits", type=float, metavar="USD", help="Credits bought in all. Without it they never end.")
@click.option("--latency", type=float, metavar="SECONDS", help="Median time of a reply (0.3).")
@click.option("--sigma", type=float, metavar="S", help="Spread of that time: sigma of a lognormal (0.35).")
@click.option("--rps", type=float, metavar="N", help="Requests per second; above that, 429.")
@click.option("--tokens-per-minute", type=float, metavar="N", help="Tokens per minute; above that, 429.")
@click.option("--max-in-flight", type=int, metavar="N", help="Calls at once; above that, 429.")
@click.option("--slots", type=int, metavar="N", help="Calls served at once; the rest wait.")
@click.option("--batch-speed", type=float, metavar="N", help="Lines per second of each batch job; else at once.")
@click.option(
    "--batch-discount", multiple=True, metavar="MODEL=F", help="Share of the price in a batch, such as MODEL=0.5."
)
@click.option("--script", type=click.Path(path_type=Path), metavar="FILE.toml", help="Settings and faults; see above.")
@click.option("--state", type=click.Path(path_type=Path), metavar="FILE", help="Keep account and ledger here.")
@click.option("--json", "as_json", is_flag=True, help="When ready, print one JSON line: url and pid.")
@click.option("--with-parent", is_flag=True, hidden=True, help="Stop when standard input ends.")
def simulate(
    port: int,
    script: Path | None,
    state: Path | None,
    *,
    batch_discount: tuple[str, ...],
    as_json: bool,
    with_parent: bool,
    **options: float | None,
) -> None:
    """Serve Together in a box, for trying without a key.

    It listens on this machine only and answers like Together AI's live, file and batch endpoints, with made-up text
    that costs nothing, and keeps an account with a ledger of every charge. Credits end,
    limits bite and things break when you ask for it.

    A script holds settings and faults, for example:

    \b
      [server]
      latency = 0.5
      [limits]
      requests_per_second = 10
      [[fault]]
      kind = "overload"
      start = 5
      seconds = 10

    Look at the account with GET /_simulator/account, at the charges with GET
    /_simulator/ledger, at the batch jobs with GET /_simulator/batches; add
    credits with POST /_simulator/top-up {"usd": 2.5}.
    """  # noqa: D301 - \b is click's mark for a paragraph to leave as it is
    settings = _settings(script, options, _discounts(batch_discount))
    _run(_serve(settings, state, port, as_json=as_json, with_parent=with_parent))


def _discounts(words: tuple[str, ...]) -> dict[str, float]:
    """MODEL=FACTOR, as often as it was given."""
    discounts: dict[str, float] = {}
    for word in words:
        model, _, factor = word.rpartition("=")
        try:
            discounts[model] = float(factor)
        except ValueError:
            model = ""
        if not model:
            raise _Unusable(f"--batch-discount {word}: write MODEL=0.5")
    return discounts


def _settings(script: Path | None, options: dict[str, float | None], discounts: dict[str, float]) -> "Settings":
    """The script's settings, with the options given on the command line over them."""
    from batchrun.simulator.settings import Settings, SettingsError, read_script

    names = {"rps": "requests_per_second"}
    given: dict[str, Any] = {names.get(name, name): value for name, value in options.items() if value is not None}
    try:
        settings = Settings() if script is None else read_script(script)
        discounts = {**settings.batch_discounts, **discounts}
        return dataclasses.replace(settings, **given, batch_discounts=discounts)
    except SettingsError as error:
        raise _Unusable(str(error)) from error


async def _serve(settings: "Settings", state: Path | None, port: int, *, as_json: bool, with_parent: bool) -> None:
    """Serve until a signal comes, or until standard input ends when it shall."""
    from batchrun.simulator import SettingsError, Simulator

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if with_parent:
        _stop_with_parent(loop, stop)
    try:
        async with Simulator(settings, state=state, port=port) as simulator:
            click.echo(_ready(simulator.url, as_json=as_json))
            await stop.wait()
    except SettingsError as error:
        raise _Unusable(str(error)) from error
    except OSError as error:
        raise _Unusable(f"port {port} cannot be used: {os.strerror(error.errno or 0)}") from error


def _ready(url: str, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"url": url, "pid": os.getpid()})
    return (
        f"Simulating Together AI at {url} (answers are made up, any key works). Ctrl-C ends it.\n"
        f"TOGETHER_API_KEY=any batchrun run prompts.jsonl -m openai/gpt-oss-20b --base-url {url}"
    )


def _stop_with_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Wait for the end of standard input in a thread of its own: it ends with the parent, however that dies."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, daemon=True).start()


def _run(main: "Coroutine[Any, Any, None]") -> None:
    """Run it on uvloop where that is installed: it serves about half as much again."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
