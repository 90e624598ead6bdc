from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.engines.base import Prompt, Request
from magpie_hf.engines.groups import fitted
from magpie_hf.sampling import SamplingParams


@given(st.integers(0, 100), st.integers(1, 100), st.none() | st.integers(1, 100))
def test_a_request_asks_for_no_more_than_there_is_room_for(prompt, most, context):
    request = Request(b"0" * 16, Prompt("x", tuple(range(prompt))), SamplingParams(max_tokens=most))
    asked = fitted(request, context).max_tokens
    if context is None or prompt + most <= context or prompt >= context:
        assert asked == most
    else:
        assert asked == context - prompt
