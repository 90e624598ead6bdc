"""Benchmark (b): the endpoint engines compared with a plain asyncio load generator and with the ideal rate of the server.

On a simulated TGI server (256 slots, log-normal latency drawn from each request's seed, so both clients have the same
latencies), the reference is the ideal rate: each request takes the first free slot immediately, without overhead. On the test
TGI server, which really generates, the reference is the plain client. On a simulated completions server with 1,024 slots and
1 % long texts, similar to vLLM on an 80 GB GPU, the openai engine is compared with the plain client for several group sizes.

    python -m benchmarks.bench_endpoint --requests 6000
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import magpie_hf
from magpie_hf.engines.base import Engine, Prompt, Request
from magpie_hf.engines.remote.openai import DEFAULT_MAX_N, OpenAIEngine
from magpie_hf.engines.remote.tgi import TgiEngine
from magpie_hf.sampling import SamplingParams
from tests.servers.http_server import ServerProcess
from tests.servers.sim_server import Latency, SimProcess


PRE_QUERY = "<|start_header_id|>user<|end_header_id|>\n\n"
DEMO = Path(magpie_hf.__file__).parent / "demo" / "model"


class Load(NamedTuple):
    """What both clients send: `num` requests under the seeds `first_seed`, `first_seed + 1`, …, `concurrency` at once.

    `is_endless`: more are sent until `num` are answered, so that the server is busy to the end.
    """

    num: int
    concurrency: int
    max_tokens: int
    first_seed: int = 0
    is_endless: bool = False

    @property
    def seeds(self) -> Iterable[int]:
        """Return the seeds to send."""
        return count(self.first_seed) if self.is_endless else range(self.first_seed, self.first_seed + self.num)


class Measured(NamedTuple):
    """The times of all replies, in seconds from the start, in order."""

    times: list[float]

    @property
    def elapsed_s(self) -> float:
        """Return the seconds until the last reply."""
        return self.times[-1]

    def steady_rate(self) -> float:
        """Return the replies per second between the first and the last tenth of them, without startup and end."""
        cut = len(self.times) // 10
        return (len(self.times) - 2 * cut - 1) / (self.times[-cut - 1] - self.times[cut])

    def late_rate(self) -> float:
        """Return the replies per second in the second half, when all slots are in use."""
        half = len(self.times) // 2
        return (len(self.times) - half - 1) / (self.times[-1] - self.times[half])

    def lowest_share(self, window_s: float) -> float:
        """Return the lowest rate over any window in the steady part, as a share of the steady rate."""
        cut = len(self.times) // 10
        steady = self.times[cut:-cut]
        edges = [steady[0] + i * window_s for i in range(int((steady[-1] - steady[0]) / window_s) + 1)]
        counts = [sum(low <= t < high for t in steady) for low, high in pairwise(edges)]
        return min(counts) / window_s / self.steady_rate() if counts else 1.0


def bare(url: str, load: Load) -> Measured:
    """Run `concurrency` workers that only post and read JSON."""
    return _bare(url + "/generate", load, _tgi_body)


def bare_completions(url: str, load: Load) -> Measured:
    """Run the same with a completions server, one sample per request."""
    return _bare(url + "/v1/completions", load, _completions_body)


def _tgi_body(load: Load, seed: int) -> dict[str, Any]:
    parameters = {"max_new_tokens": load.max_tokens, "do_sample": True, "details": True, "seed": seed}
    return {"inputs": PRE_QUERY, "parameters": parameters}


def _completions_body(load: Load, seed: int) -> dict[str, Any]:
    return {"model": "demo", "prompt": list(range(6)), "max_tokens": load.max_tokens, "temperature": 1.0, "seed": seed}


def _bare(url: str, load: Load, body: Callable[[Load, int], dict[str, Any]]) -> Measured:
    import aiohttp

    times: list[float] = []

    async def worker(session: aiohttp.ClientSession, seeds: Iterator[int], start: float) -> None:
        for seed in seeds:
            async with session.post(url, json=body(load, seed)) as answer:
                await answer.json()
                times.append(time.perf_counter() - start)
                if load.is_endless and len(times) >= load.num:
                    return

    async def run() -> None:
        seeds = iter(load.seeds)
        connector = aiohttp.TCPConnector(limit=load.concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:
            start = time.perf_counter()
            workers = [asyncio.create_task(worker(session, seeds, start)) for _ in range(load.concurrency)]
            until = asyncio.FIRST_COMPLETED if load.is_endless else asyncio.ALL_COMPLETED
            ended, rest = await asyncio.wait(workers, return_when=until)
            for task in rest:
                task.cancel()
            await asyncio.gather(*ended)
            await asyncio.gather(*rest, return_exceptions=True)

    asyncio.run(run())
    return Measured(times)


def engine(url: str, load: Load) -> Measured:
    """Run the same through TgiEngine."""
    return _through(TgiEngine("demo", endpoints=[url], concurrency=load.concurrency, allow_model_mismatch=True), load)


def openai_engine(url: str, load: Load, max_n: int = DEFAULT_MAX_N) -> Measured:
    """Run the same through OpenAIEngine, up to `max_n` samples a request."""
    made = OpenAIEngine("demo", endpoints=[url], concurrency=load.concurrency, max_n=max_n, allow_model_mismatch=True)
    return _through(made, load)


def _through(made: Engine, load: Load) -> Measured:
    prompt = Prompt(PRE_QUERY, token_ids=range(6))
    sampling = SamplingParams(max_tokens=load.max_tokens)
    requests = (Request(seed, prompt, sampling.with_seed(seed)) for seed in load.seeds)
    times: list[float] = []
    with made as client:
        start = time.perf_counter()
        for generation in client.generate(requests):
            if generation.failure is not None:
                raise RuntimeError(f"request {generation.key}: {generation.failure}")
            times.append(time.perf_counter() - start)
            if load.is_endless and len(times) == load.num:
                break
    if len(times) != load.num:
        raise RuntimeError(f"{len(times)} answers for {load.num} requests")
    return Measured(times)


def ideal_s(latency: Latency, slots: int, load: Load) -> float:
    """Return the seconds that the load takes if each request starts as soon as a slot is free."""
    free = [0.0] * slots
    end = 0.0
    for seed in range(load.first_seed, load.first_seed + load.num):
        done = heapq.heappop(free) + latency.draw(seed)
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def simulated(args: argparse.Namespace) -> None:
    """Compare both clients with the ideal rate on the simulated server, then again with a few very slow rows."""
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


def wide(args: argparse.Namespace) -> None:
    """Compare the openai engine with the bare client on 1,024 slots and long tails, in the same run."""
    latency = Latency(args.wide_median_s, args.wide_sigma, args.tail)
    load = Load(args.wide_requests, args.wide_slots, 256, is_endless=True)
    options = ["--slots", str(args.wide_slots), "--tail", str(args.tail)]
    options += ["--median-s", str(args.wide_median_s), "--sigma", str(args.wide_sigma)]
    clients: dict[str, Callable[[str, Load], Measured]] = {"bare client, one sample a request": bare_completions}
    clients |= {f"openai engine, up to {n} sample(s) a request": partial(openai_engine, max_n=n) for n in (1, 2, 4, 8)}
    rates: dict[str, float] = {}
    for name, client in clients.items():
        with SimProcess(*options) as sim:
            rates[name] = client(sim.url, load).late_rate()
        share = rates[name] / next(iter(rates.values()))
        limit = "0.95" if "up to 1 " in name else "-"
        busy = min(args.wide_slots, rates[name] * latency.mean_s)
        print(f"| {name} | {rates[name]:.0f}/s, {share:.2f} of the bare client, {busy:.0f} slots busy | {limit} |")
    print(f"| what {args.wide_slots} slots could give | {args.wide_slots / latency.mean_s:.0f}/s | - |")


def real(args: argparse.Namespace) -> None:
    """Compare both clients on the server that really generates: the best of `--repeats` alternating runs each."""
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
    parser.add_argument("--wide-requests", type=int, default=8_000)
    parser.add_argument("--wide-slots", type=int, default=1024)
    parser.add_argument("--wide-median-s", type=float, default=3.0)
    parser.add_argument("--wide-sigma", type=float, default=0.3)
    parser.add_argument("--tail", type=float, default=0.01, help="share of the samples that take 20 times as long")
    parser.add_argument("--model", default=str(DEMO))
    parser.add_argument("--real-requests", type=int, default=600)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["simulated", "wide", "real"])
    args = parser.parse_args()
    print("| measure | value | limit |")
    print("|---|---|---|")
    for name, part in {"simulated": simulated, "wide": wide, "real": real}.items():
        if args.only in (None, name):
            part(args)


if __name__ == "__main__":
    main()
