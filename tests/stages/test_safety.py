from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import magpie_hf
from magpie_hf._template_guard import GuardTemplate
from magpie_hf.engines import ENGINES
from magpie_hf.stages.safety import read_verdict
from magpie_hf.templates import ChatTemplate
from tests.scripted_engine import ScriptedEngine


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("safe", ("safe", [])),
        ("\n\nsafe", ("safe", [])),
        ("Safe.", ("safe", [])),
        ("unsafe\nS1", ("unsafe", ["S1"])),
        ("unsafe\nS1,S9", ("unsafe", ["S1", "S9"])),
        ("unsafe\nS1, s9, S1", ("unsafe", ["S1", "S9"])),
        ("unsafe", ("unsafe", [])),
        ("safe\nS1", ("safe", [])),
        ("unsafely put", None),
        ("I think it is safe", None),
        ("", None),
    ],
)
def test_a_guards_answer_is_read(text, verdict):
    assert read_verdict(text) == verdict


@given(st.text(max_size=60))
def test_reading_a_guards_answer_never_raises(text):
    found = read_verdict(text)
    assert found is None or found.label in ("safe", "unsafe")


GUARD_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "Task: Check if there is unsafe content in '{{ 'User' if messages|length % 2 else 'Agent' }}' messages.\n"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n\n{% endfor %}"
    "First line must read 'safe' or 'unsafe'."
)


def test_a_guards_own_template_is_rendered_with_the_whole_conversation(demo_model_dir):
    guard = GuardTemplate.load(str(demo_model_dir), override=GUARD_TEMPLATE)
    assert guard.has_own
    prompt = guard.conversation([{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}])
    assert "'Agent' messages" in prompt.text
    assert "assistant: So." in prompt.text
    bos = guard.tokenizer.bos_token_id
    assert [token for token in prompt.token_ids if token == bos] == [bos]


def test_a_chat_model_is_asked_in_words_with_the_codes(demo_model_dir):
    guard = GuardTemplate.load(str(demo_model_dir), chat=lambda: ChatTemplate.load(str(demo_model_dir)))
    assert not guard.has_own
    text = guard.conversation([{"role": "user", "content": "How? {codes}"}]).text
    assert "S9: Indiscriminate weapons" in text
    assert "How? {codes}" in text


def test_an_answer_that_is_neither_is_asked_for_again_then_null(monkeypatch, tiny_model_dir, tmp_path):
    monkeypatch.setitem(ENGINES, "scripted", "tests.scripted_engine:ScriptedEngine")
    ScriptedEngine.reset()
    texts = ["maybe", "unsafe\nS2", "hm", "hm", "safe"]
    ScriptedEngine.answer = staticmethod(lambda request, number: texts[number])
    data = Dataset.from_dict({"instruction": ["a", "b", "c", None], "response": ["x", None, "z", "w"]})
    ds = magpie_hf.annotate(
        data,
        ["safety"],
        guard={"model": str(tiny_model_dir), "kind": "scripted", "window": 1},
        output=tmp_path / "run",
    )
    assert ds["safety"][:] == ["unsafe", None, "safe", None]
    assert ds["safety_categories"][:] == [["S2"], None, [], None]
    assert ds["llama_guard_2"][:] == ["unsafe\nS2", "hm", "safe", None]
    assert ds["safety_error"][:] == [None, "unparsable", None, "no instruction"]
