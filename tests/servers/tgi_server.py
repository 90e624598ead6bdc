"""A server that speaks TGI 3.3's protocol and generates with a local model: the endpoint of the TGI tests.

After TGI's OpenAPI description and its router's checks: what is refused (422, 424, 429, 500 with `error` and
`error_type`), what counts as sampling, how the limits are worded, BOS added by the tokenizer whatever the text begins
with, a stop sequence left at the end of `generated_text`, special tokens left out of it, the end-of-turn token counted
in `generated_tokens`, `seed` null when greedy. Not there: best_of above 1, grammars, watermarks, typical_p (422).

    python -m tests.servers.tgi_server --model DIR --port 0 --print-port
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import time
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from .faults import Behavior
from .generation import Generator, Job, Output
from .http_server import FaultyServer


VERSION = "3.3.6-dev0"
DEFAULT_MAX_NEW_TOKENS = 100
NUMBERS = ("temperature", "repetition_penalty", "frequency_penalty", "top_p", "typical_p")
INTEGERS = ("best_of", "top_k", "max_new_tokens", "truncate", "seed", "top_n_tokens")
FLAGS = ("do_sample", "return_full_text", "watermark", "details", "decoder_input_details")


class Refused(Exception):
    """A request that TGI answers with an error; `error_type` as TGI names it."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type

    def response(self) -> JSONResponse:
        """Return the error as TGI sends it."""
        return JSONResponse({"error": str(self), "error_type": self.error_type}, status_code=self.status)


def invalid(message: str) -> Refused:
    """Return a refusal for a parameter that cannot be used."""
    return Refused(422, "validation", f"Input validation error: {message}")


class TgiServer(FaultyServer):
    """TGI on the model in `model_dir`, under the name `model_id` (by default the directory's).

    `generator`: one to share between servers of the same model. `enable_prefill`: without it `details.prefill` is
    empty even if asked for, as on a TGI started without prompt log probabilities. `max_input_tokens` and
    `max_total_tokens` default to the model's context.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        generator: Generator | None = None,
        model_id: str | None = None,
        model_sha: str | None = None,
        max_concurrent_requests: int = 512,
        max_stop_sequences: int = 4,
        max_best_of: int = 2,
        max_total_tokens: int | None = None,
        max_input_tokens: int | None = None,
        enable_prefill: bool = True,
        rows: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._own = generator is None
        self.generator = generator or Generator(model_dir, rows=rows)
        self.model_id = model_id or str(model_dir)
        self.model_sha = model_sha
        self.max_concurrent_requests = max_concurrent_requests
        self.max_stop_sequences = max_stop_sequences
        self.max_best_of = max_best_of
        self.max_total_tokens = min(max_total_tokens or self.generator.max_length, self.generator.max_length)
        self.max_input_tokens = max_input_tokens or self.max_total_tokens - 1
        self.enable_prefill = enable_prefill
        self._add_routes()

    def stop(self) -> None:
        """End the server and, if it has its own, the generator."""
        super().stop()
        if self._own:
            self.generator.close()

    def error_body(self, status: int) -> dict[str, Any]:
        """Return TGI's error for this status."""
        known = {
            422: ("validation", "Input validation error: ordered by a test"),
            424: ("generation", "Request failed during generation: ordered by a test"),
            429: ("overloaded", "Model is overloaded"),
            500: ("incomplete_generation", "Incomplete generation"),
            503: ("healthcheck", "unhealthy"),
        }
        error_type, message = known.get(status, ("unknown", f"error {status}"))
        return {"error": message, "error_type": error_type}

    def info(self) -> dict[str, Any]:
        """Return what `/info` says."""
        return {
            "model_id": self.behavior.model_id or self.model_id,
            "model_sha": self.behavior.model_sha or self.model_sha,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_best_of": self.max_best_of,
            "max_stop_sequences": self.max_stop_sequences,
            "max_input_tokens": self.max_input_tokens,
            "max_total_tokens": self.max_total_tokens,
            "validation_workers": 1,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }

    def job(self, inputs: Any, given: dict[str, Any]) -> tuple[Job, int | None]:
        """Return the checked request, and the seed to report (None when greedy); raises Refused."""
        _check_types(inputs, given)
        _check_ranges(given, self.max_best_of)
        stop = tuple(given.get("stop") or ())
        if len(stop) > self.max_stop_sequences:
            raise invalid(f"`stop` supports up to {self.max_stop_sequences} stop sequences. Given: {len(stop)}")
        if not inputs:
            raise invalid("`inputs` cannot be empty")
        ids = self._input_ids(inputs, given.get("truncate"))
        max_new = given.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        if max_new is None:
            max_new = min(max(self.max_total_tokens - len(ids), 0), 1024)
        if len(ids) + max_new > self.max_total_tokens:
            raise invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {self.max_total_tokens}. "
                f"Given: {len(ids)} `inputs` tokens and {max_new} `max_new_tokens`"
            )
        if len(ids) > self.max_input_tokens:
            raise invalid(f"`inputs` must have less than {self.max_input_tokens} tokens. Given: {len(ids)}")
        for name in ("grammar", "typical_p"):
            if given.get(name) is not None:
                raise invalid(f"{name} is not supported")
        # `do_sample` alone, or any parameter that bends the distribution, makes TGI sample; temperature 1 does not.
        temperature, top_p = given.get("temperature") or 1.0, given.get("top_p") or 1.0
        sampled = bool(given.get("do_sample")) or temperature != 1.0 or top_p < 1.0 or bool(given.get("top_k"))
        seed = given.get("seed")
        seed = secrets.randbits(63) if seed is None else seed
        job = Job(
            prompt_ids=ids,
            max_new_tokens=max_new,
            temperature=temperature,
            top_k=given.get("top_k") or 0,
            top_p=top_p,
            repetition_penalty=given.get("repetition_penalty") or 1.0,
            seed=seed if sampled else None,
            stop=stop,
            stop_ids=self.generator.eos_ids,
        )
        return job, job.seed

    def _input_ids(self, inputs: str, truncate: int | None) -> tuple[int, ...]:
        if truncate is not None and not 0 < truncate <= self.max_input_tokens:
            most = self.max_input_tokens
            raise invalid(f"`truncate` must be strictly positive and less than {most}. Given: {truncate}")
        ids = self.generator.encode(inputs)
        return ids[-truncate:] if truncate else ids

    async def _generate(self, inputs: Any, given: dict[str, Any]) -> tuple[Job, Output]:
        if self.record.num_open > self.max_concurrent_requests:
            raise Refused(429, "overloaded", "Model is overloaded")
        job, _ = self.job(inputs, given)
        return job, await asyncio.wrap_future(self.generator.submit(job))

    async def _whole(self, inputs: Any, given: dict[str, Any], wrap: bool) -> Response:
        start = time.monotonic()
        try:
            job, output = await self._generate(inputs, given)
        except Refused as refused:
            return refused.response()
        answer: dict[str, Any] = {"generated_text": self._text(inputs, given, output), "details": None}
        if given.get("details") or given.get("decoder_input_details"):
            answer["details"] = {
                "finish_reason": output.finish,
                "generated_tokens": len(output.token_ids),
                "seed": job.seed,
                "prefill": self._prefill(job) if given.get("decoder_input_details") else [],
                "tokens": self._tokens(output),
            }
        elapsed_ms = str(int((time.monotonic() - start) * 1000))
        headers = {
            "x-compute-type": "cpu",
            "x-total-time": elapsed_ms,
            "x-inference-time": elapsed_ms,
            "x-prompt-tokens": str(len(job.prompt_ids)),
            "x-generated-tokens": str(len(output.token_ids)),
        }
        return JSONResponse([answer] if wrap else answer, headers=headers)

    async def _stream(self, inputs: Any, given: dict[str, Any]) -> Response:
        """Return the tokens as server-sent events; they come when the text is complete."""
        try:
            if (given.get("best_of") or 1) != 1:
                raise invalid("`best_of` != 1 is not supported when streaming tokens")
            if given.get("decoder_input_details"):
                raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
            job, output = await self._generate(inputs, given)
        except Refused as refused:
            return Response(_event(json.loads(bytes(refused.response().body))), media_type="text/event-stream")
        events: list[dict[str, Any]] = [
            {"index": i + 1, "token": token, "generated_text": None, "details": None}
            for i, token in enumerate(self._tokens(output))
        ]
        details = {
            "finish_reason": output.finish,
            "generated_tokens": len(output.token_ids),
            "seed": job.seed,
            "input_length": len(job.prompt_ids),
        }
        events[-1] |= {
            "generated_text": self._text(inputs, given, output),
            "details": details if given.get("details") else None,
        }
        return Response("".join(map(_event, events)), media_type="text/event-stream")

    def _text(self, inputs: str, given: dict[str, Any], output: Output) -> str:
        text = self.generator.decode(output.token_ids)
        return inputs + text if given.get("return_full_text") else text

    def _prefill(self, job: Job) -> list[dict[str, Any]]:
        if not self.enable_prefill:
            return []
        texts = [self.generator.decode([i], skip_special_tokens=False) for i in job.prompt_ids]
        return [{"id": i, "text": t, "logprob": None} for i, t in zip(job.prompt_ids, texts, strict=True)]

    def _tokens(self, output: Output) -> list[dict[str, Any]]:
        """Return each new token with the text that it adds (empty while a character is incomplete)."""
        special = self._special_ids()
        tokens, start, read, ids = [], 0, 0, output.token_ids
        for i, (token, logprob) in enumerate(zip(ids, output.logprobs, strict=True)):
            before = self.generator.decode(ids[start:read], skip_special_tokens=False)
            now = self.generator.decode(ids[start : i + 1], skip_special_tokens=False)
            text = ""
            if len(now) > len(before) and not now.endswith("\ufffd"):
                text, start, read = now[len(before) :], read, i + 1
            tokens.append({"id": token, "text": text, "logprob": logprob, "special": token in special})
        return tokens

    def _special_ids(self) -> frozenset[int]:
        added = self.generator.tokenizer.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def _add_routes(self) -> None:
        async def serve(request: Request, stream: bool | None, wrap: bool) -> Response:
            try:
                body = json.loads(await request.body())
                inputs, given = body["inputs"], dict(body.get("parameters") or {})
            except (ValueError, KeyError, TypeError) as error:
                message = f"Failed to deserialize the JSON body into the target type: {error}"
                return PlainTextResponse(message, status_code=422)
            stream = bool(body.get("stream")) if stream is None else stream
            seed = given.get("seed") if isinstance(given.get("seed"), int) else None
            key = {"inputs": inputs, "parameters": given}

            async def make() -> Response:
                return await (self._stream(inputs, given) if stream else self._whole(inputs, given, wrap))

            return await self.answer(request, key, make, seed=seed)

        @self.app.post("/generate")
        async def generate(request: Request) -> Response:
            return await serve(request, False, wrap=False)

        @self.app.post("/generate_stream")
        async def generate_stream(request: Request) -> Response:
            return await serve(request, True, wrap=False)

        @self.app.post("/")
        async def compat_generate(request: Request) -> Response:
            return await serve(request, None, wrap=True)

        @self.app.get("/info")
        async def info() -> Any:
            return self.info()

        @self.app.get("/health")
        async def health() -> Response:
            return Response()

        @self.app.get("/metrics")
        async def metrics() -> Response:
            done = self.record.stats()["completed"]
            return PlainTextResponse(f"tgi_request_count {len(self.record.entries)}\ntgi_request_success {done}\n")

        @self.app.post("/tokenize")
        async def tokenize(request: Request) -> Response:
            body = json.loads(await request.body())
            encoding = self.generator.tokenizer.encode(body["inputs"])
            rows = zip(encoding.ids, encoding.offsets, strict=True)
            return JSONResponse([{"id": i, "text": body["inputs"][a:b], "start": a, "stop": b} for i, (a, b) in rows])


def _event(data: dict[str, Any]) -> str:
    return f"data:{json.dumps(data)}\n\n"


def _check_types(inputs: Any, given: dict[str, Any]) -> None:
    """Refuse values of the wrong type, as the router's JSON reader does before it looks at what they mean."""

    def wrong(name: str) -> Refused:
        return Refused(422, "validation", f"Failed to deserialize the JSON body into the target type: {name}")

    if not isinstance(inputs, str):
        raise wrong("inputs")
    for name, value in given.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is None:
            continue
        if name in NUMBERS and not is_number:
            raise wrong(name)
        if name in INTEGERS and not (isinstance(value, int) and is_number and (name == "top_k" or value >= 0)):
            raise wrong(name)
        if name in FLAGS and not isinstance(value, bool):
            raise wrong(name)
        if name == "stop" and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            raise wrong(name)


def _check_ranges(given: dict[str, Any], max_best_of: int) -> None:
    best_of = given.get("best_of") or 1
    sampling = bool(given.get("do_sample")) or any(
        given.get(name) is not None for name in ("temperature", "top_k", "top_p", "typical_p")
    )
    if best_of > max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {max_best_of}. Given: {best_of}")
    if best_of > 1 and not sampling:
        raise invalid("you must use sampling when `best_of` is > 1")
    for name in ("temperature", "repetition_penalty"):
        if given.get(name) is not None and given[name] <= 0:
            raise invalid(f"`{name}` must be strictly positive")
    if given.get("frequency_penalty") is not None and not -2 <= given["frequency_penalty"] <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        if given.get(name) is not None and not 0 < given[name] < 1:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0")
    if given.get("top_k") is not None and given["top_k"] <= 0:
        raise invalid("`top_k` must be strictly positive")
    if given.get("max_new_tokens") == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if best_of > 1 and given.get("seed") is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")
    if best_of > 1:
        raise invalid("`best_of` != 1 is not allowed for this endpoint")


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of a Llama model")
    parser.add_argument("--model-id", help="the name that /info gives; default: the directory")
    parser.add_argument("--model-sha")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--print-port", action="store_true")
    parser.add_argument("--rows", type=int, default=16, help="texts generated at once")
    parser.add_argument("--max-concurrent-requests", type=int, default=512)
    parser.add_argument("--refuse-s", type=float, default=0.0, help="refuse connections for so long")
    parser.add_argument("--behavior", default="{}", help="JSON as for POST /_faults")
    args = parser.parse_args()
    server = TgiServer(
        args.model,
        model_id=args.model_id,
        model_sha=args.model_sha,
        rows=args.rows,
        max_concurrent_requests=args.max_concurrent_requests,
        behavior=Behavior.from_json(json.loads(args.behavior)),
        refuse_s=args.refuse_s,
        port=args.port,
    )
    server.run_forever(args.print_port)


if __name__ == "__main__":
    main()
