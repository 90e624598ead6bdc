"""A simulated server: slots, log-normal latency with a long tail, next to no work a request; clients are measured on it.

A sample takes a free slot (first come, first served), holds it for a time drawn from its seed, and gives it back; a
request with `n` is answered when its last sample is done. With as many samples waiting as there are slots at all times,
the rate is `slots / mean latency`: what a client is compared with. Plain asyncio, no framework: the server must cost
less than the clients it measures. Speaks enough of TGI (`/generate`, `/`, `/info`) and of OpenAI's completions
(`/v1/completions`, `/v1/models`); the text is a count, as only time matters.

    python -m tests.servers.sim_server --slots 256 --median-s 0.5 --sigma 0.6 --port 0 --print-port
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple


# Requests for fewer tokens are questions about the server: answered at once, without a slot.
QUESTION_TOKENS = 128


class Latency(NamedTuple):
    """Log-normal seconds: `median_s * exp(sigma * z)`; z comes from the sample's seed, so every client meets the same.

    A share of `tail` of the seeds takes `tail_times` as long: the texts that run on until `max_tokens`.
    """

    median_s: float = 0.5
    sigma: float = 0.6
    tail: float = 0.0
    tail_times: float = 20.0

    @property
    def mean_s(self) -> float:
        """The expected value."""
        return self.median_s * math.exp(self.sigma**2 / 2) * (1 + self.tail * (self.tail_times - 1))

    def draw(self, seed: int) -> float:
        """Return the seconds for this seed."""
        digest = hashlib.blake2b(str(seed).encode(), digest_size=16).digest()
        share = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
        is_long = int.from_bytes(digest[8:], "big") < self.tail * 2**64
        seconds = self.median_s * math.exp(self.sigma * statistics.NormalDist().inv_cdf(share))
        return seconds * (self.tail_times if is_long else 1)


class Job:
    """One request: the samples of the seeds `seed`, `seed + 1`, …, of which `left` are not done."""

    __slots__ = ("connection", "left", "n", "path", "prompt_tokens", "seed")

    def __init__(self, connection: Connection, path: bytes, seed: int, n: int, prompt_tokens: int) -> None:
        self.connection, self.path, self.seed, self.n, self.left = connection, path, seed, n, n
        self.prompt_tokens = prompt_tokens


class SimServer:
    """The state: slots, the queue for them, and what was measured."""

    def __init__(self, slots: int, latency: Latency, model_id: str, slow_every: int = 0, slow_s: float = 0.0) -> None:
        self.slots = slots
        self.latency = latency
        self.slow_every, self.slow_s = slow_every, slow_s
        self.info = {
            "model_id": model_id,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 100_000,
            "max_best_of": 1,
            "max_stop_sequences": 4,
            "max_input_tokens": 4095,
            "max_total_tokens": 4096,
            "validation_workers": 1,
            "max_client_batch_size": 4,
            "router": "simulated",
            "version": "3.3.6-dev0",
        }
        self.reset()

    def reset(self) -> None:
        """Forget what was measured."""
        self.busy = 0
        self.waiting: deque[tuple[Job, float]] = deque()
        self.done = self.connections = self.max_busy = 0
        self.busy_s = self.work_s = 0.0
        self.started: float | None = None
        self.last = self.ended = time.perf_counter()

    def _clock(self) -> None:
        now = time.perf_counter()
        self.busy_s += self.busy * (now - self.last)
        self.last = now

    def take(self, job: Job, number: int) -> None:
        """Begin the samples of this request, or queue them until a slot is free."""
        slow = self.slow_every and number % self.slow_every == 0
        for seed in range(job.seed, job.seed + job.n):
            seconds = self.slow_s if slow else self.latency.draw(seed)
            if self.busy < self.slots:
                self._begin(job, seconds)
            else:
                self.waiting.append((job, seconds))

    def _begin(self, job: Job, seconds: float) -> None:
        self._clock()
        self.started = self.started or self.last
        self.busy += 1
        self.max_busy = max(self.max_busy, self.busy)
        self.work_s += seconds
        asyncio.get_running_loop().call_later(seconds, self._end, job)

    def _end(self, job: Job) -> None:
        self._clock()
        self.busy -= 1
        self.done += 1
        self.ended = self.last
        job.left -= 1
        if not job.left:
            job.connection.reply(job)
        if self.waiting:
            self._begin(*self.waiting.popleft())

    def stats(self) -> dict[str, Any]:
        """Return counts and times; `occupancy` is the mean share of the slots in use from first to last request."""
        elapsed = self.ended - (self.started or self.ended)
        return {
            "done": self.done,
            "connections": self.connections,
            "max_busy": self.max_busy,
            "elapsed_s": elapsed,
            "rate": self.done / elapsed if elapsed else 0.0,
            "ideal_rate": self.slots / self.latency.mean_s,
            "occupancy": self.busy_s / elapsed / self.slots if elapsed else 0.0,
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests come one after the other."""

    numbers = 0

    def __init__(self, server: SimServer) -> None:
        self.server = server
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        """Serve what is complete in the buffer."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            path = head.split(b" ", 2)[1]
            self.buffer = self.buffer[end + 4 + length :]
            self._serve(path, body)

    def _serve(self, path: bytes, body: bytes) -> None:
        if path in (b"/generate", b"/", b"/v1/completions"):
            Connection.numbers += 1
            asked = json.loads(body)
            seed = asked.get("parameters", asked).get("seed")
            job = Job(
                self,
                path,
                Connection.numbers if seed is None else seed,
                asked.get("n", 1),
                len(asked.get("prompt", ())),
            )
            if asked.get("max_tokens", QUESTION_TOKENS) < QUESTION_TOKENS:
                self.reply(job)
            else:
                self.server.take(job, Connection.numbers)
        elif path == b"/v1/models":
            self._send(json.dumps({"data": [{"id": self.server.info["model_id"]}]}).encode())
        elif path == b"/info":
            self._send(json.dumps(self.server.info).encode())
        elif path == b"/_stats":
            self._send(json.dumps(self.server.stats()).encode())
        elif path == b"/_reset":
            self.server.reset()
            self._send(b"{}")
        else:
            self._send(b"")

    def reply(self, job: Job) -> None:
        """Send the generations of a request."""
        if self.transport.is_closing():
            return
        if job.path == b"/v1/completions":
            self._send(_choices(job))
            return
        seed = job.seed
        details = (
            f'"details":{{"finish_reason":"eos_token","generated_tokens":16,"seed":{seed},"prefill":[],"tokens":[]}}'
        )
        text = f'{{"generated_text":"Simulated text number {seed}, what would it be about?",{details}}}'
        self._send((f"[{text}]" if job.path == b"/" else text).encode(), b"x-prompt-tokens: 16\r\n")

    def _send(self, body: bytes, headers: bytes = b"") -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
        self.transport.write(head % (headers, len(body)) + body)


def _choices(job: Job) -> bytes:
    texts = [f"Simulated text number {seed}" for seed in range(job.seed, job.seed + job.n)]
    choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": job.prompt_tokens, "completion_tokens": 16 * job.n}
    return json.dumps({"choices": choices, "usage": usage}).encode()


class SimProcess:
    """The simulated server as a process: `with SimProcess("--slots", "256") as sim: sim.url, sim.get("/_stats")`."""

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "tests.servers.sim_server", "--print-port", *arguments]

    def __enter__(self) -> SimProcess:
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(self._command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        return self

    def get(self, path: str) -> Any:
        """Return the JSON at this path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.loads(response.read())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=30)
        if self.process.stdout is not None:
            self.process.stdout.close()


async def _run(args: argparse.Namespace) -> None:
    latency = Latency(args.median_s, args.sigma, args.tail)
    server = SimServer(args.slots, latency, args.model_id, args.slow_every, args.slow_s)
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(server), "127.0.0.1", args.port, backlog=4096
    )
    if args.print_port:
        sys.stdout.write(f"{listener.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
    await listener.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--median-s", type=float, default=0.5)
    parser.add_argument("--sigma", type=float, default=0.6)
    parser.add_argument("--tail", type=float, default=0.0, help="share of the samples that take 20 times as long")
    parser.add_argument("--model-id", default="simulated")
    parser.add_argument("--slow-every", type=int, default=0, help="every so-many-th request takes --slow-s")
    parser.add_argument("--slow-s", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--print-port", action="store_true")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
