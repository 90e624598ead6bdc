"""A `/v1/completions` server that behaves like vLLM, llama.cpp or `transformers serve`, with the test servers' generator.

Takes text or token ids, one prompt or a list, `n` samples a prompt (sample i under seed + i), `stop`,
`stop_token_ids`, `skip_special_tokens`, `add_special_tokens`, `return_token_ids`, and bans by `logit_bias`; unknown
fields are ignored. `dialect="llama.cpp"` or `"transformers"` takes and refuses what those do, and replies in their form
(see `dialects`, and `recordings/` for what the real ones said). `chat_only=True` gives a server that has chat completions
and nothing else, as hosted APIs; `string_only=True` one that refuses token ids.

    python -m tests.servers.completions_server --model DIR --port 0 --print-port
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from .chat_route import ChatForm, satisfies
from .dialects import DIALECTS, BadRequest, constrained
from .faults import Behavior
from .generation import Generator, Job, Output
from .http_server import FaultyServer


VERSION = "0.32.0"
DEFAULT_MAX_TOKENS = 16


class CompletionsServer(FaultyServer):
    """`/v1/completions` for the model in `model_dir`, served under the name `model_id`.

    `max_n`: most samples a request, in place of the dialect's own limit; it can be changed while the server runs, at
    `server.dialect.most_n`. `fingerprint`: the `system_fingerprint` of its replies. `seeded=False`: ignores seeds.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        generator: Generator | None = None,
        model_id: str | None = None,
        chat_only: bool = False,
        string_only: bool = False,
        seeded: bool = True,
        dialect: str = "vllm",
        max_n: int | None = None,
        fingerprint: str | None = None,
        rows: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._own = generator is None
        self.generator = generator or Generator(model_dir, rows=rows)
        self.model_id = model_id or str(model_dir)
        self.chat_only = chat_only
        self.string_only = string_only
        self.seeded = seeded
        self.dialect = DIALECTS[dialect](fingerprint, max_n)
        self.chat = ChatForm(self.dialect, model_dir)
        self._add_routes()

    def stop(self) -> None:
        """End the server and, if it has its own, the generator."""
        super().stop()
        if self._own:
            self.generator.close()

    @property
    def served_name(self) -> str:
        """Return the name of the model that the server reports."""
        return self.behavior.model_id or self.model_id

    def error_body(self, status: int) -> dict[str, Any]:
        """Return an error of OpenAI's form."""
        return {"error": {"message": f"ordered by a test: {status}", "type": "error", "param": None, "code": status}}

    def _refusal(self, bad: BadRequest) -> JSONResponse:
        return JSONResponse(self.dialect.error(bad), status_code=bad.status)

    def prompts(self, given: dict[str, Any]) -> list[tuple[int, ...]]:
        """Return the token ids of each prompt; raises BadRequest."""
        prompt = given.get("prompt")
        if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        if not isinstance(prompt, list) or not prompt:
            raise BadRequest("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
        out = []
        for one in prompt:
            if isinstance(one, str):
                out.append(self.generator.encode(one, add_special_tokens=given.get("add_special_tokens", True)))
            elif self.string_only:
                raise BadRequest("prompt must be a string.", param="prompt")
            elif all(isinstance(i, int) and 0 <= i < self.generator.weights.vocab_size for i in one):
                out.append(tuple(one))
            else:
                raise BadRequest("Token id out of vocabulary", param="prompt")
        return out

    def jobs(self, given: dict[str, Any]) -> list[Job]:
        """Return `n` jobs for each prompt; raises BadRequest."""
        if self.dialect.checks_model and given.get("model") not in (None, self.served_name):
            raise BadRequest(**self.dialect.unknown_model(given["model"], self.served_name))
        n, temperature, top_p = (_or_one(given.get(name)) for name in ("n", "temperature", "top_p"))
        top_k = given.get("top_k") or 0
        if temperature < 0:
            raise BadRequest(f"temperature must be non-negative, got {temperature}.", param="temperature")
        if not 0 < top_p <= 1:
            raise BadRequest(f"top_p must be in (0, 1], got {top_p}.", param="top_p")
        prompts = self.prompts(given)
        max_tokens = given.get("max_tokens", DEFAULT_MAX_TOKENS)
        rooms = [self.dialect.new_tokens(len(ids), max_tokens, self.generator.max_length) for ids in prompts]
        seed = given.get("seed") if self.seeded else None
        stop = given.get("stop") or ()
        stop_ids = frozenset(given.get("stop_token_ids") or ())
        jobs = []
        for ids, room in zip(prompts, rooms, strict=True):
            for i in range(n):
                own_seed = secrets.randbits(31) if seed is None else seed + i
                jobs.append(
                    Job(
                        prompt_ids=ids,
                        max_new_tokens=room,
                        temperature=temperature or 1.0,
                        top_k=max(top_k, 0),
                        top_p=top_p,
                        repetition_penalty=given.get("repetition_penalty") or 1.0,
                        seed=own_seed if temperature else None,
                        stop=(stop,) if isinstance(stop, str) else tuple(stop),
                        stop_inside=True,
                        stop_ids=stop_ids if given.get("ignore_eos") else stop_ids | self.generator.eos_ids,
                        banned_first_ids=_banned(given, self.generator.weights.vocab_size),
                        min_new_tokens=given.get("min_tokens") or 0,
                    )
                )
        return jobs

    def _choice(self, index: int, job: Job, output: Output, given: dict[str, Any]) -> dict[str, Any]:
        skip = given.get("skip_special_tokens", True) or not self.dialect.shows_special
        ids = output.token_ids
        if output.finish == "length" and ids[-1] in job.stop_ids:
            # vLLM looks for the end of a text before it looks at the length.
            output.finish, output.stopped_by = "eos_token", ids[-1]
        shown = ids[:-1] if output.finish == "eos_token" and not given.get("include_stop_str_in_output") else ids
        text = self.generator.decode(shown, skip_special_tokens=skip)
        reason = None
        if output.finish == "stop_sequence":
            text = text if self.dialect.keeps_stop else text.partition(str(output.stopped_by))[0]
            reason = output.stopped_by
        elif output.finish == "eos_token" and output.stopped_by not in self.generator.eos_ids:
            reason = output.stopped_by
        choice = {
            "index": index,
            "text": text,
            "finish_reason": "length" if output.finish == "length" else "stop",
            "stop_reason": reason,
            "logprobs": self._logprobs(output) if given.get("logprobs") is not None else None,
        }
        if given.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": list(job.prompt_ids)}
        return choice

    def _logprobs(self, output: Output) -> dict[str, Any]:
        tokens = [self.generator.decode([i], skip_special_tokens=False) for i in output.token_ids]
        return {"tokens": tokens, "token_logprobs": output.logprobs, "top_logprobs": None, "text_offset": []}

    async def _complete(self, given: dict[str, Any], chat_schema: dict[str, Any] | None = None) -> Response:
        given = self.dialect.read(given)
        jobs = self.jobs(given)
        outputs = await asyncio.gather(*(asyncio.wrap_future(self.generator.submit(job)) for job in jobs))
        schema = chat_schema or self.dialect.schema(given)
        choices, counts = [], []
        for i, (job, output) in enumerate(zip(jobs, outputs, strict=True)):
            choice, count = self._choice(i, job, output, given), len(output.token_ids)
            if schema is not None and not satisfies(choice["text"], schema):
                choice, count = self._held(choice, schema, job.max_new_tokens)
            choices.append(choice)
            counts.append(count)
        num_prompt = sum(len(ids) for ids in self.prompts(given))
        return JSONResponse(self.dialect.reply(self.served_name, choices, num_prompt, counts))

    def _held(self, choice: dict[str, Any], schema: dict[str, Any], most: int) -> tuple[dict[str, Any], int]:
        """Return the choice of a weak model under a schema, and its number of tokens."""
        text = constrained(schema)
        if text is None:
            ended = {"text": '{"ok": true' + "\n" * most, "finish_reason": "length", "stop_reason": None}
            return choice | ended | ({"token_ids": [0] * most} if "token_ids" in choice else {}), most
        ids = list(self.generator.encode(text, add_special_tokens=False))
        ended = {"text": text, "finish_reason": "stop", "stop_reason": None}
        return choice | ended | ({"token_ids": ids} if "token_ids" in choice else {}), len(ids) + 1

    async def _chat(self, given: dict[str, Any]) -> Response:
        """Respond to a conversation."""
        schema = self.chat.schema(given)
        reply = await self._complete(self.chat.read(given), schema)
        whole = self.chat.reply(json.loads(bytes(reply.body)))
        return JSONResponse(whole)

    def _add_routes(self) -> None:
        async def serve(request: Request, make: Any) -> Response:
            try:
                given = dict(json.loads(await request.body()))
            except (ValueError, TypeError):
                return self._refusal(BadRequest("The body is not a JSON object."))
            seed = given.get("seed") if isinstance(given.get("seed"), int) else None

            async def reply() -> Response:
                try:
                    return await make(given)
                except BadRequest as bad:
                    return self._refusal(bad)

            return await self.answer(request, given, reply, seed=seed, n=given.get("n") or 1)

        @self.app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            return await serve(request, self._chat)

        @self.app.get("/v1/models")
        async def models() -> Any:
            limit, weights = self.generator.max_length, self.generator.weights
            facts = {"n_vocab": weights.vocab_size, "n_embd": weights.embed.shape[1], "n_params": 0, "size": 0}
            return self.dialect.models(self.served_name, self.model_id, limit, facts)

        @self.app.get("/health")
        async def health() -> Response:
            return Response()

        if self.chat_only:
            return

        @self.app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            return await serve(request, self._complete)

        if self.dialect.name != "vllm":
            return

        @self.app.get("/version")
        async def version() -> Any:
            return {"version": VERSION}

        @self.app.post("/tokenize")
        async def tokenize(request: Request) -> Any:
            given = json.loads(await request.body())
            ids = self.generator.encode(given["prompt"], add_special_tokens=given.get("add_special_tokens", True))
            return {"count": len(ids), "max_model_len": self.generator.max_length, "tokens": list(ids)}


def _or_one(value: Any) -> Any:
    return 1 if value is None else value


def _banned(given: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the tokens that `logit_bias` forbids; all others where it forces some.

    A real server bans and forces them at every position, this one at the first only: there the two agree, and it is
    the only place where Magpie bans or forces anything.
    """
    bias = given.get("logit_bias") or {}
    forced = {int(token) for token, value in bias.items() if value >= 100}
    if forced:
        return tuple(token for token in range(vocab_size) if token not in forced)
    return tuple(int(token) for token, value in bias.items() if value <= -100)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of a Llama model")
    parser.add_argument("--model-id")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--print-port", action="store_true")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), default="vllm")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--chat-only", action="store_true")
    parser.add_argument("--string-only", action="store_true")
    parser.add_argument("--behavior", default="{}", help="JSON as for POST /_faults")
    args = parser.parse_args()
    server = CompletionsServer(
        args.model,
        model_id=args.model_id,
        chat_only=args.chat_only,
        string_only=args.string_only,
        dialect=args.dialect,
        rows=args.rows,
        behavior=Behavior.from_json(json.loads(args.behavior)),
        port=args.port,
    )
    server.run_forever(args.print_port)


if __name__ == "__main__":
    main()
