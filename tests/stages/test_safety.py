from __future__ import annotations

import functools

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import magpie_hf
from magpie_hf.engines import ENGINES
from magpie_hf.errors import TemplateError
from magpie_hf.stage import Context
from magpie_hf.stages.safety import Safety, read_verdict
from magpie_hf.templates.guard import GuardTemplate
from magpie_hf.templates.template import ChatTemplate
from tests.scripted_engine import ScriptedEngine
from tests.template_families import make_tokenizer
from tests.template_families.table import SPM


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


PARTS_TEMPLATE = (
    "{{ bos_token }}<|user|>Task: find unsafe content.\n"
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}; {% endfor %}"
    "{{ policy | default('') }}Answer 'safe' or 'unsafe'.<|end|>"
)
PAIR = ({"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."})


def test_a_guard_that_wants_parts_is_asked_about_the_conversation_and_not_about_an_empty_one(demo_model_dir):
    guard = GuardTemplate.load(str(demo_model_dir), override=PARTS_TEMPLATE, template_kwargs={"policy": "Be strict. "})
    assert guard.has_own
    assert "user: How?; assistant: So.; Be strict. Answer" in guard.conversation(PAIR).text
    assert "user: How?; Be strict. Answer" in guard.conversation(PAIR[:1]).text


@pytest.mark.parametrize(
    ("printed", "reason"),
    [("m['text']", "does not print the conversation"), ("raise_exception('no such form')", "no such form")],
)
def test_a_guard_whose_prompt_does_not_show_the_conversation_is_refused(demo_model_dir, printed, reason):
    text = "Task: {% for m in messages %}{{ " + printed + " }}{% endfor %} Answer 'safe' or 'unsafe'."
    chat = functools.partial(ChatTemplate.load, str(demo_model_dir), chat_template=text)
    with pytest.raises(TemplateError, match=reason):
        GuardTemplate.load(str(demo_model_dir), chat=chat, override=text)


def test_a_guard_that_shows_pairs_only_is_refused_for_a_lone_instruction(demo_model_dir):
    shown = "{{ messages[0]['content'] ~ messages[1]['content'] if messages|length > 1 }}"
    guard = GuardTemplate.load(str(demo_model_dir), override=f"{{{{ bos_token }}}}Task. {shown} Safe or unsafe?")
    assert "How?So." in guard.conversation(PAIR).text
    with pytest.raises(TemplateError, match="does not print the conversation"):
        guard.conversation(PAIR[:1])


LONG = (*PAIR, {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Then so."})


def test_a_guard_classifies_the_whole_conversation_if_asked(demo_model_dir, tmp_path):
    data = Dataset.from_dict({"messages": [[{"role": "system", "content": "Be brief."}, *LONG], [*PAIR]]})
    data = data.add_column("instruction", ["How?"] * 2).add_column("response", ["So."] * 2)
    seen = []

    class Watched(GuardTemplate):
        def conversation(self, messages):
            seen.append([message["content"] for message in messages])
            return super().conversation(messages)

    context = Context(Watched(ChatTemplate.load(str(demo_model_dir))), 0, "guard")
    for row in data:
        next(Safety(over="messages").bind(context)({**row, "_index": 0}))
        next(Safety().bind(context)({**row, "_index": 0}))
    assert seen == [["How?", "So.", "And then?", "Then so."], ["How?", "So."], ["How?", "So."], ["How?", "So."]]
    ds = magpie_hf.annotate(data, [{"stage": "safety", "over": "messages"}], engine="demo", output=tmp_path / "run")
    assert {*ds["safety"]} <= {"safe", "unsafe"}


def test_a_guard_that_shows_only_the_first_turn_is_refused_for_conversations(demo_model_dir):
    shown = "{{ messages[0]['content'] ~ (messages[1]['content'] if messages|length > 1 else '') }}"
    guard = GuardTemplate.load(str(demo_model_dir), override=f"{{{{ bos_token }}}}Task. {shown} Safe or unsafe?")
    Safety().check_template(guard)
    with pytest.raises(TemplateError, match="does not print the conversation"):
        Safety(over="messages").check_template(guard)


def test_a_conversation_without_texts_is_not_sent_to_the_guard(demo_model_dir):
    context = Context(GuardTemplate(ChatTemplate.load(str(demo_model_dir))), 0, "guard")
    for messages in (None, [], [{"role": "user", "content": None}], [{"role": "system", "content": "Be brief."}]):
        with pytest.raises(StopIteration) as ended:
            next(Safety(over="messages").bind(context)({"messages": messages, "_index": 0}))
        assert ended.value.value.code == "empty"


def test_the_word_unsafe_in_a_default_system_prompt_makes_no_guard(demo_model_dir):
    text = (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<|system|>Give no unsafe answers.<|end|>{% endif %}"
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = functools.partial(ChatTemplate.load, str(demo_model_dir), chat_template=text)
    guard = GuardTemplate.load(str(demo_model_dir), chat=chat, override=text)
    assert not guard.has_own
    assert "S9: Indiscriminate weapons" in guard.conversation(PAIR).text


def test_a_guards_prompt_has_the_bos_that_its_tokenizer_adds(tmp_path):
    tokenizer = make_tokenizer(**SPM, chat_template=GUARD_TEMPLATE.replace("{{ bos_token }}", ""))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    prompt = GuardTemplate.load(str(tmp_path), chat=None).conversation(PAIR)
    assert prompt.text.startswith("<s>Task")
    assert list(prompt.token_ids) == tokenizer(prompt.text_without_bos)["input_ids"]


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
        guard={"model": str(tiny_model_dir), "engine": {"kind": "scripted", "window": 1}},
        output=tmp_path / "run",
    )
    assert ds["safety"][:] == ["unsafe", None, "safe", None]
    assert ds["safety_categories"][:] == [["S2"], None, [], None]
    assert ds["llama_guard_2"][:] == ["unsafe\nS2", "hm", "safe", None]
    assert ds["safety_error"][:] == [None, "unparsable", None, "no instruction"]
