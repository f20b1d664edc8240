"""A writer in a process of its own: `store_child.py CHECKPOINT [accept]`, then one line a command on standard input.

It answers each line with one: `open PID`, `kept N`, `refused CODE MESSAGE`, `failed CODE MESSAGE`, `closed`.
"""

from __future__ import annotations

import asyncio
import os
import sys

from store_support import answer, closed, keep_all, opened, request, want

from batchrun.clock import RealClock
from batchrun.errors import BatchrunError
from batchrun.store.store import Store

ROWS = 5000


def say(words: str) -> None:
    print(words, flush=True)


async def obey(store: Store, command: str, argument: str) -> None:
    if command == "want":
        await want(store, [request(row) for row in range(int(argument))])
        say("wanted")
    elif command == "keep":
        first, last = (int(number) for number in argument.split("-"))
        await keep_all(
            store, [answer(request(row), body=f'{{"text": "{row}"}}'.encode()) for row in range(first, last)]
        )
        say(f"kept {(await store.kept()).answered}")
    elif command == "marks":
        calls, nano = (int(number) for number in argument.split("-"))
        await store.raise_marks(calls, nano)
        say("raised")
    elif command == "close":
        await closed(store)
        say("closed")


async def main() -> None:
    try:
        store = await opened(sys.argv[1], RealClock(), accept_loss="accept" in sys.argv)
    except BatchrunError as error:
        say(f"refused {error.exit_code} {error.message}")
        return
    say(f"open {os.getpid()}")
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, _, argument = line.strip().partition(" ")
        try:
            await obey(store, command, argument)
        except BatchrunError as error:
            say(f"failed {error.exit_code} {error.message}")
        if command == "close":
            return


if __name__ == "__main__":
    asyncio.run(main())
