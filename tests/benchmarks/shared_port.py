"""How evenly workers share a port: `python tests/benchmarks/shared_port.py [WORKERS [CONNECTIONS]]`.

Prints, for connections that come at once, one after the other, and each with a call that stays open,
how many descriptors each worker got (two for a call: its client and the provider), and what memory
a worker holds. Linux.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.http import RawClient
from support.process import installed, open_files, resident_kb, worker_pids
from support.provider import FakeProvider
from support.traffic import Held, ask, settings

_SETTLE_S = 1.0


async def main(workers: int, number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with FakeProvider(Held()) as provider:
            config = settings(f"{folder}/data", provider.base_url, shutdown_timeout_s=0)
            config["server"]["workers"] = workers
            async with installed(Path(folder), config) as farebox:
                process = await farebox.start()
                pids = worker_pids(process.pid)
                held: list[RawClient] = []

                async def connect() -> None:
                    client = RawClient(process.port)
                    await client.__aenter__()
                    held.append(client)

                async def measure(what: str, before: list[int]) -> None:
                    await asyncio.sleep(_SETTLE_S)
                    print(f"{what:14}", [open_files(pid) - was for pid, was in zip(pids, before, strict=True)])
                    for client in held:
                        client.abort()
                    held.clear()
                    await asyncio.sleep(_SETTLE_S)

                before = [open_files(pid) for pid in pids]
                await asyncio.gather(*(connect() for _ in range(number)))
                await measure("at once", before)
                for _ in range(number):
                    await connect()
                    await asyncio.sleep(0.002)
                await measure("one by one", before)
                calls = [
                    asyncio.create_task(ask(process.port, farebox.key, f"m-{n}", stream=True)) for n in range(number)
                ]
                await asyncio.sleep(2 * _SETTLE_S)
                await measure("with calls", before)
                print(f"{'MB resident':14}", [resident_kb(pid) >> 10 for pid in pids])
                for task in calls:
                    task.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                await process.stop()


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(given + [3, 300][len(given) :])))
