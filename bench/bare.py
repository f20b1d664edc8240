"""The yardstick: a bare aiohttp loop over the file; answers are parsed and dropped. It keeps nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator


async def main(source: str, url: str, model: str, concurrency: int) -> int:
    import aiohttp

    def prompts() -> Iterator[str]:
        with open(source, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["prompt"]

    rows = prompts()
    headers = {"Authorization": "Bearer any", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    done = 0

    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def work() -> None:
            nonlocal done
            for prompt in rows:
                body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 60}
                async with session.post(f"{url}/v1/chat/completions", data=json.dumps(body).encode()) as response:
                    done += bool(json.loads(await response.read())["choices"])

        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(work())
    return done


if __name__ == "__main__":
    arguments = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    try:
        import uvloop
    except ImportError:
        print(asyncio.run(main(*arguments)))
    else:
        print(uvloop.run(main(*arguments)))
