"""Benchmark (b): the endpoint engine against a bare asyncio load generator, and against what the server could give.

On a simulated TGI (256 slots, log-normal latency drawn from each request's seed, so that both clients meet the same
latencies) the yardstick is the ideal: each request takes the first free slot at once and costs nothing else. Then on
the test TGI server, which really generates, the yardstick is the bare client.

    python -m benchmarks.bench_endpoint --requests 6000
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import magpie_hf
from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.tgi import TgiEngine
from magpie_hf.sampling import SamplingParams
from tests.servers.http_server import ServerProcess
from tests.servers.sim_server import Latency, SimProcess


PRE_QUERY = "<|start_header_id|>user<|end_header_id|>\n\n"
DEMO = Path(magpie_hf.__file__).parent / "demo" / "model"


class Load(NamedTuple):
    """What both clients send: `num` requests under the seeds `first_seed`, `first_seed + 1`, …, `concurrency` at once."""

    num: int
    concurrency: int
    max_tokens: int
    first_seed: int = 0


class Measured(NamedTuple):
    """When each answer was there, in seconds from the start, in order."""

    times: list[float]

    @property
    def elapsed_s(self) -> float:
        """Seconds to the last answer."""
        return self.times[-1]

    def steady_rate(self) -> float:
        """Answers a second between a tenth and nine tenths of them, without the run-up and the end."""
        cut = len(self.times) // 10
        return (len(self.times) - 2 * cut - 1) / (self.times[-cut - 1] - self.times[cut])

    def lowest_share(self, window_s: float) -> float:
        """Return the lowest rate over any window in the steady part, as a share of the steady rate."""
        cut = len(self.times) // 10
        steady = self.times[cut:-cut]
        edges = [steady[0] + i * window_s for i in range(int((steady[-1] - steady[0]) / window_s) + 1)]
        counts = [sum(low <= t < high for t in steady) for low, high in pairwise(edges)]
        return min(counts) / window_s / self.steady_rate() if counts else 1.0


def bare(url: str, load: Load) -> Measured:
    """Run `concurrency` workers that post and read JSON, and nothing else."""
    import aiohttp

    times: list[float] = []

    async def worker(session: aiohttp.ClientSession, seeds: Iterator[int], start: float) -> None:
        for seed in seeds:
            parameters = {"max_new_tokens": load.max_tokens, "do_sample": True, "details": True, "seed": seed}
            async with session.post(f"{url}/generate", json={"inputs": PRE_QUERY, "parameters": parameters}) as answer:
                await answer.json()
                times.append(time.perf_counter() - start)

    async def run() -> None:
        seeds = iter(range(load.first_seed, load.first_seed + load.num))
        connector = aiohttp.TCPConnector(limit=load.concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:
            start = time.perf_counter()
            await asyncio.gather(*(worker(session, seeds, start) for _ in range(load.concurrency)))

    asyncio.run(run())
    return Measured(times)


def engine(url: str, load: Load) -> Measured:
    """Run the same through TgiEngine."""
    prompt = Prompt(PRE_QUERY, token_ids=range(6))
    sampling = SamplingParams(max_tokens=load.max_tokens)
    seeds = range(load.first_seed, load.first_seed + load.num)
    requests = (Request(seed, prompt, sampling.with_seed(seed)) for seed in seeds)
    times: list[float] = []
    made = TgiEngine("demo", endpoints=[url], concurrency=load.concurrency, allow_model_mismatch=True)
    with made as client:
        start = time.perf_counter()
        for generation in client.generate(requests):
            if generation.failure is not None:
                raise RuntimeError(f"request {generation.key}: {generation.failure}")
            times.append(time.perf_counter() - start)
    if len(times) != load.num:
        raise RuntimeError(f"{len(times)} answers for {load.num} requests")
    return Measured(times)


def ideal_s(latency: Latency, slots: int, load: Load) -> float:
    """Return the seconds that the load takes if each request begins the moment a slot is free."""
    free = [0.0] * slots
    end = 0.0
    for seed in range(load.first_seed, load.first_seed + load.num):
        done = heapq.heappop(free) + latency.draw(seed)
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def simulated(args: argparse.Namespace) -> None:
    """Compare both clients with the ideal on the simulated server, and once more with a few very slow rows."""
    latency = Latency(args.median_s, args.sigma)
    load = Load(args.requests, args.slots, 16)
    best = ideal_s(latency, args.slots, load)
    options = ["--slots", str(args.slots), "--median-s", str(args.median_s), "--sigma", str(args.sigma)]
    clients: dict[str, Callable[[str, Load], Measured]] = {"bare asyncio client": bare, "tgi engine": engine}
    for name, client in clients.items():
        with SimProcess(*options) as sim:
            measured = client(sim.url, load)
        limit = "95 %" if client is engine else "-"
        print(f"| {name}, simulated: share of the ideal rate | {best / measured.elapsed_s:.1%} | {limit} |")
        print(f"| {name}, simulated: requests/s | {load.num / measured.elapsed_s:.0f} of {load.num / best:.0f} | - |")
        print(f"| {name}, simulated: slowest second against the mean | {measured.lowest_share(1.0):.0%} | - |")
    slow_s = 0.9 * best
    with SimProcess(*options, "--slow-every", str(load.num // 4), "--slow-s", f"{slow_s:.1f}") as sim:
        measured = engine(sim.url, load)
    print(
        f"| tgi engine, four rows of {slow_s:.0f} s among fast ones: steady rate "
        f"| {measured.steady_rate():.0f}/s of {args.slots / latency.mean_s:.0f}/s | - |"
    )


def real(args: argparse.Namespace) -> None:
    """Compare both clients on the server that really generates; the best of `--repeats` each, taken in turn."""
    best: dict[str, float] = {}
    with ServerProcess("tgi_server", args.model, "--model-id", "demo") as server:
        bare(server.url, Load(64, 64, args.max_tokens))
        for repeat in range(args.repeats):
            load = Load(args.real_requests, 64, args.max_tokens, first_seed=1000 * (repeat + 1))
            for name, client in {"bare": bare, "engine": engine}.items():
                rate = load.num / client(server.url, load).elapsed_s
                best[name] = max(best.get(name, 0.0), rate)
    share = best["engine"] / best["bare"]
    rates = f"{best['engine']:.0f}/s against {best['bare']:.0f}/s"
    print(f"| tgi engine against the bare client, test TGI server | {share:.1%} ({rates}) | 95 % |")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--median-s", type=float, default=0.5)
    parser.add_argument("--sigma", type=float, default=0.6)
    parser.add_argument("--model", default=str(DEMO))
    parser.add_argument("--real-requests", type=int, default=600)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["simulated", "real"])
    args = parser.parse_args()
    print("| measure | value | limit |")
    print("|---|---|---|")
    if args.only != "real":
        simulated(args)
    if args.only != "simulated":
        real(args)


if __name__ == "__main__":
    main()
