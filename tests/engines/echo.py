"""An engine without a model, for tests of the process that holds one: it writes its prompt's token ids."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from magpie_hf.engines.base import Capabilities, Engine, Generation, Served
from magpie_hf.errors import CapabilityError


@dataclass(frozen=True)
class EchoSettings:
    seconds: float = 0.0
    exit_code: int | None = None
    fail: str | None = None


class EchoEngine(Engine):
    name = "echo"
    settings_class = EchoSettings
    window = 8

    def open(self):
        if self.settings.fail == "open":
            raise CapabilityError("echo cannot open.", hint="The test asked for this.")

    def capabilities(self):
        return Capabilities(max_context=64)

    @property
    def served(self):
        return Served(model="echo", version=str(os.getpid()))

    def generate(self, requests):
        for request in requests:
            if request is None:
                continue
            if self.settings.exit_code is not None and request.key == 5:
                os._exit(self.settings.exit_code)
            if self.settings.fail == "generate" and request.key == 5:
                raise RuntimeError("no more today")
            time.sleep(self.settings.seconds)
            text = f"{os.getpid()} {' '.join(map(str, request.prompt.token_ids))} {request.sampling.seed}"
            yield Generation(request.key, text, "stop", seed=request.sampling.seed)

    def close(self):
        pass
