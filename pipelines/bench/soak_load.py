"""The clients of a soak: searches at a pace, whose answers are all checked, and changes of rows meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np

from cluster.media import FLOATS, JSON
from pipelines.bench.soak_oracle import F32, Checked, K, Oracle

CLIENTS, BACKLOG = 8, 256
POOLS = 16  # of connections: httpx looks at all of a pool's for each request, and 256 would take more than an answer
LATE_S = 0.1  # a request that is sent so long after it was due is late
EXACT_SHARE = 0.01  # of the queries go to the exact tier
CHECK_TOGETHER = 64
SEARCH, ROWS = "/v1/collections/rows/search", "/v1/collections/rows/rows"


@dataclass
class Tally:
    """What was seen. milliseconds: from when a request was due to its answer, so that a wait to be sent counts.

    due, sent, late: requests that the pace asked for, that were sent before the end, that were sent late.
    """

    rate_asked: float = 0.0
    due: int = 0
    sent: int = 0
    late: int = 0
    answers: int = 0
    partial: int = 0
    busy: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    recalls: list[float] = field(default_factory=list)
    exact: int = 0
    changes: int = 0
    swaps: int = 0
    kills: int = 0
    milliseconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    ingress: list[int] = field(default_factory=list)


class Load:
    """Asks the service and has every answer checked; everything is counted in `tally`."""

    def __init__(self, http: Sequence[httpx.AsyncClient], queries: F32, oracle: Oracle, tally: Tally) -> None:
        self._http, self._queries, self._oracle, self.tally = http, queries, oracle, tally
        self._checks: asyncio.Queue[Checked] = asyncio.Queue(4 * BACKLOG)
        self._chance = random.Random(1)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Answers are checked while this is open."""
        checker = asyncio.create_task(self._check())
        try:
            yield
        finally:
            checker.cancel()

    async def closed(self, seconds: float) -> float:
        """Requests a second that `CLIENTS` get answered, and checked, one after another."""
        began = time.perf_counter()
        end = began + seconds

        async def client(number: int) -> int:
            count = 0
            while (now := time.perf_counter()) < end:
                await self._one(number + count * CLIENTS, now)
                count += 1
            return count

        counts = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        await self._checks.join()
        return sum(counts) / (time.perf_counter() - began)

    async def paced(self, rate: float, end: float) -> None:
        """Requests at this rate, whether or not earlier ones are answered; at most `BACKLOG` are under way."""
        gate, tasks, began = asyncio.Semaphore(BACKLOG), set[asyncio.Task[None]](), time.perf_counter()
        self.tally.due = int((end - began) * rate)

        async def one(number: int, due: float) -> None:
            try:
                await self._one(number, due)
            finally:
                gate.release()

        for number in range(self.tally.due):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await gate.acquire()
            now = time.perf_counter()
            if now > end:
                gate.release()
                break
            self.tally.sent += 1
            self.tally.late += now - due > LATE_S
            task = asyncio.create_task(one(number, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        await self._checks.join()

    async def _one(self, number: int, due: float) -> None:
        """One search, as JSON or as raw float32, counted."""
        query, tally = self._queries[number % len(self._queries)], self.tally
        http = self._http[number % len(self._http)]
        exact = self._chance.random() < EXACT_SHARE
        tier = "exact" if exact else "hnsw"
        try:
            if number % 4:
                options = {"k": str(K), "tier": tier, "explain": "true", "metadata": "false"}
                content, headers = query.astype("<f4").tobytes(), {"Content-Type": FLOATS, "Accept": JSON}
                reply = await http.post(SEARCH, params=options, content=content, headers=headers)
            else:
                body = {"vectors": [query.tolist()], "k": K, "tier": tier, "explain": True, "metadata": False}
                reply = await http.post(SEARCH, json=body)
        except httpx.HTTPError as error:
            tally.wrong[f"no answer ({type(error).__name__})"] += 1
            return
        if reply.status_code == 503 and "retry-after" in reply.headers:
            tally.busy += 1
        elif reply.status_code != 200:
            tally.wrong[f"status {reply.status_code}"] += 1
        else:
            tally.milliseconds.append(1000 * (time.perf_counter() - due))
            tally.answers += 1
            await self._checks.put(Checked(query, reply.json()["results"][0], exact))

    async def _check(self) -> None:
        """Answers that wait are checked together, those about one version at once."""
        while True:
            some = [await self._checks.get()]
            while len(some) < CHECK_TOGETHER and not self._checks.empty():
                some.append(self._checks.get_nowait())
            versions: dict[int, list[Checked]] = defaultdict(list)
            for answer in some:
                versions[answer.version].append(answer)
            for version, answers in versions.items():
                for _ in range(1000):  # the change's own answer may still be on its way
                    if version <= self._oracle.version:
                        break
                    await asyncio.sleep(0.01)
                if version > self._oracle.version:
                    self.tally.wrong["a version that no change made"] += len(answers)
                    continue
                found = await asyncio.to_thread(self._oracle.faults, version, answers)
                for answer, (why, share) in zip(answers, found, strict=True):
                    self._count(answer, why, share)
            for _ in some:
                self._checks.task_done()

    def _count(self, answer: Checked, why: str, share: float) -> None:
        tally = self.tally
        tally.partial += bool(answer.hit["partial"])
        tally.exact += answer.exact
        tally.recalls += [] if answer.hit["partial"] else [share]
        if why:
            tally.wrong[why] += 1

    async def change(self) -> None:
        """Put in copies of four rows, or delete two, so that answers change; sent again until it is known."""
        tally, oracle = self.tally, self._oracle
        chance = random.Random(tally.changes)
        rows_now = await asyncio.to_thread(oracle.at, oracle.version)
        names, vectors = rows_now.names, rows_now.vectors
        if tally.changes % 3 == 2:
            gone = [str(names[chance.randrange(len(names))]) for _ in range(2)]
            rows: dict[str, F32 | None] = dict.fromkeys(gone)
            method, body = "DELETE", {"ids": list(rows)}
        else:
            picked = [vectors[chance.randrange(len(vectors))] for _ in range(4)]
            rows = {f"new-{chance.randrange(200)}": np.array(vector) for vector in picked}
            method, body = "POST", {"ids": list(rows), "vectors": [v.tolist() for v in rows.values() if v is not None]}
        last = ""
        for _ in range(20):  # the same key: sent again it changes nothing
            try:
                headers = {"Idempotency-Key": f"change-{tally.changes}"}
                reply = await self._http[0].request(method, ROWS, json=body, headers=headers)
                last = f"status {reply.status_code}"
                if reply.status_code == 200:
                    oracle.changed(int(reply.json()["version"]), rows)
                    tally.changes += 1
                    return
                if reply.status_code != 503 or "retry-after" not in reply.headers:
                    break
            except httpx.HTTPError as error:
                last = type(error).__name__
            await asyncio.sleep(0.2)
        tally.wrong[f"a change: {last}"] += 1
