from __future__ import annotations

import datetime as dt
import functools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from magpie_hf.errors import ArgumentError, ModelError, TemplateError
from magpie_hf.templates.describe import describe
from magpie_hf.templates.plain import PlainTemplate
from magpie_hf.templates.template import ChatTemplate

from .template_families import make_tokenizer, template
from .template_families.table import CHATML, EOT, FAMILIES, IE, IM, L3, SPM, TOKENIZERS, H


DAY = "2026-03-04"
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def study(family: str) -> ChatTemplate:
    date = None if family == "llama-3" else DAY
    return ChatTemplate(
        make_tokenizer(**TOKENIZERS[family], chat_template=template(family)), name=family, template_date=date
    )


def ask(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@every_family
def test_pre_query_prompt_is_the_template_up_to_the_user(family: str) -> None:
    chat, (text, *_) = study(family), FAMILIES[family]
    prompt = chat.pre_query()
    assert prompt.text == text
    assert list(prompt.token_ids) == chat.tokenizer.encode(text, add_special_tokens=False)
    assert chat.pre_query() is prompt


@every_family
def test_a_system_prompt_stands_before_the_user_or_is_refused_with_the_reason(family: str) -> None:
    chat, expected = study(family), FAMILIES[family][1]
    if expected.startswith("!"):
        with pytest.raises(TemplateError, match=f"rejects a system prompt: {expected[1:]}"):
            chat.pre_query("Be brief.")
        assert chat.pre_query("").text == chat.pre_query().text
    else:
        assert chat.pre_query("Be brief.").text == expected


@every_family
def test_a_response_prompt_ends_with_the_assistants_header(family: str) -> None:
    prompt = study(family).response([ask("Hi")])
    assert prompt.text.endswith(FAMILIES[family][2])
    assert list(prompt.token_ids) == study(family).tokenizer.encode(prompt.text, add_special_tokens=False)


@every_family
def test_every_prompt_has_one_bos_where_the_model_uses_one(family: str) -> None:
    chat = study(family)
    bos = chat.tokenizer.bos_token_id
    writes = "bos_token" in template(family) or TOKENIZERS[family].get("adds_bos", False)
    for prompt in (chat.pre_query(), chat.response([ask("Hi")])):
        assert list(prompt.token_ids).count(bos) == (1 if writes else 0)
        assert prompt.bos == (chat.tokenizer.bos_token if writes else "")
        assert not writes or prompt.token_ids[0] == bos


@every_family
def test_stops_begin_with_what_ends_the_turn_and_name_no_role(family: str) -> None:
    chat = study(family)
    first_instruction, first_response = FAMILIES[family][3:]
    assert chat.instruction_stops.texts[0] == first_instruction
    assert chat.response_stops.texts[0] == first_response
    assert chat.tokenizer.eos_token_id in chat.instruction_stops.token_ids
    assert chat.tokenizer.eos_token_id in chat.response_stops.token_ids
    for stops in (chat.instruction_stops, chat.response_stops):
        assert not {"assistant", "Assistant", "user", "model", ""} & {text.strip() for text in stops.texts}
        assert all(chat.decode([i]).strip() in stops.texts for i in stops.token_ids)


@every_family
def test_the_next_users_prompt_continues_the_history(family: str) -> None:
    chat = study(family)
    history = [ask("Hi"), answer("Yo.")]
    prompt = chat.next_user(history)
    assert prompt.text.startswith(chat.pre_query().text)
    assert "Yo." in prompt.text
    whole = chat.response([*history, ask("And then?")])
    assert whole.text.startswith(prompt.text)
    assert list(whole.token_ids[: len(prompt.token_ids)]) == list(prompt.token_ids)
    after = prompt.text.rpartition("Yo.")[2].replace("<|assistant_end|>", "")
    assert "assistant" not in after.lower()
    assert "model" not in after


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    lambda text: text == text.strip() and not any(mark in text for mark in "<[|")
)


@every_family
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, said=TEXTS)
def test_any_user_text_leaves_the_pre_query_tokens_as_they_are(family: str, text: str, said: str) -> None:
    chat = study(family)
    asked = chat.response([ask(text)])
    ids = chat.pre_query().token_ids
    assert asked.token_ids[: len(ids)] == ids
    turn = chat.next_user([ask(text), answer(said)])
    full = chat.response([ask(text), answer(said), ask(text)])
    assert full.token_ids[: len(turn.token_ids)] == turn.token_ids
    assert "MagpieSlot" not in asked.text + turn.text + full.text


def test_a_conversation_may_contain_our_sentinel() -> None:
    chat = study("qwen-3")
    prompt = chat.next_user([ask("MagpieSlot0Qx MagpieSlot1Qx"), answer("MagpieSlot2Qx")])
    assert prompt.text == f"{IM}user\nMagpieSlot0Qx MagpieSlot1Qx{IE}{IM}assistant\nMagpieSlot2Qx{IE}{IM}user\n"


def test_borders_that_merge_keep_their_own_tokens() -> None:
    kind = {**L3, "kind": "gpt2", "chat_template": template("llama-3")}
    chat = ChatTemplate(make_tokenizer(**kind))
    prompt = chat.pre_query()
    newline = chat.tokenizer.encode("\n", add_special_tokens=False)
    assert prompt.text.endswith("\n\n")
    assert list(prompt.token_ids[-2:]) == newline * 2
    turn = chat.next_user([ask("Hi"), answer("Yo.")])
    whole = chat.response([ask("Hi"), answer("Yo."), ask("Go on")])
    assert whole.token_ids[: len(turn.token_ids)] == turn.token_ids
    assert list(turn.token_ids[-2:]) == newline * 2
    assert any("Use an engine that accepts token ids" in note for note in describe(chat)["notes"])


def test_a_space_that_stays_a_token_of_its_own_is_kept() -> None:
    # [INST] is special and the normalizer puts a second space after it: "▁", "▁Hi", but "▁▁" at the end of a text
    kind = {**SPM, "special": "[INST] [/INST]", "chat_template": template("mistral-v0.3")}
    chat = ChatTemplate(make_tokenizer(**kind))
    for prompt, history in (
        (chat.pre_query(), []),
        (chat.next_user([ask("Hi"), answer("Yo.")]), [ask("Hi"), answer("Yo.")]),
    ):
        whole = chat.response([*history, ask("How are you?")])
        assert whole.token_ids[: len(prompt.token_ids)] == prompt.token_ids
        assert chat.tokenizer.convert_ids_to_tokens(prompt.token_ids[-2:]) == ["[INST]", "▁"]
        assert prompt.text.endswith("[INST] ")


@pytest.mark.parametrize("family", ["llama-3.2", "mistral-small", "smollm-3", "gpt-oss", "granite-3"])
def test_a_run_resumed_on_another_day_sends_the_same_bytes(family: str) -> None:
    tokenizer = make_tokenizer(**TOKENIZERS[family], chat_template=template(family))
    today = ChatTemplate(tokenizer)
    assert today.date == dt.datetime.now().astimezone().date().isoformat()
    assert ChatTemplate(tokenizer, template_date=today.date).pre_query().text == today.pre_query().text
    assert today.pre_query().text != study(family).pre_query().text
    assert today.pre_query().text == _cut(tokenizer.apply_chat_template([ask("@@@")], tokenize=False))
    assert study(family).date == DAY


def _cut(rendered: str) -> str:
    return rendered.partition("@@@")[0]


def test_a_constant_date_stays_unless_a_date_is_given() -> None:
    tokenizer = make_tokenizer(**L3, chat_template=template("llama-3.1"))
    chat = ChatTemplate(tokenizer)
    assert chat.date is None
    assert "Today: 05 May 2024\n" in chat.pre_query().text
    given = ChatTemplate(tokenizer, template_kwargs={"date_string": "long ago"}, template_date=DAY)
    assert "Today: long ago\n" in given.pre_query().text


def test_the_date_macro_leaves_the_templates_first_characters_alone() -> None:
    text = "\n  {% if true %}x{{ strftime_now('%Y-%m-%d %% %H') }}{% endif %}{{ messages[0]['content'] }}"
    tokenizer = make_tokenizer(**CHATML, chat_template=text)
    plain = tokenizer.apply_chat_template([ask("Hi")], chat_template=text.replace("%H", "00"), tokenize=False)
    day = dt.datetime.now().astimezone().date()
    assert ChatTemplate(tokenizer, template_date=day).response([ask("Hi")]).text == plain


def test_template_arguments_reach_the_template_and_the_hash() -> None:
    tokenizer = make_tokenizer(**CHATML, chat_template=template("qwen-3"))
    plain = ChatTemplate(tokenizer)
    quiet = ChatTemplate(tokenizer, template_kwargs={"enable_thinking": False})
    assert quiet.response([ask("Hi")]).text.endswith("<think>\n\n</think>\n\n")
    assert quiet.pre_query().text == plain.pre_query().text
    assert quiet.hash != plain.hash == ChatTemplate(tokenizer).hash
    with pytest.raises(ArgumentError, match="'tokenize' cannot be set"):
        ChatTemplate(tokenizer, template_kwargs={"tokenize": True})


@every_family
def test_an_empty_system_prompt_blanks_a_default_and_adds_no_empty_block(family: str) -> None:
    chat = study(family)
    default, blank = chat.pre_query(), chat.pre_query("")
    if family in BLANKED:
        assert blank.text == BLANKED[family]
    else:
        assert blank.text == default.text
    for prompt in (chat.response([ask("Hi")], ""), chat.next_user([ask("Hi"), answer("Yo.")], "")):
        assert prompt.text.startswith(blank.text)


BLANKED = {
    "qwen-2": f"{IM}system\n{IE}{IM}user\n",
    "qwen-2.5": f"{IM}system\n{IE}{IM}user\n",
    "mistral-small": "<s>[SYSTEM_PROMPT][/SYSTEM_PROMPT][INST]",
    "vicuna": "<s> USER:",
    "granite-3": "<|start_of_role|>system<|end_of_role|><|end_of_text|>\n<|start_of_role|>user<|end_of_role|>",
}


@pytest.mark.parametrize("before", ["", "\n ", "{{ bos_token }}"], ids=["nothing", "white space", "BOS"])
def test_a_template_with_nothing_before_the_user_is_refused(before: str) -> None:
    text = before + "{{ messages[0]['content'] }}<|eot_id|>"
    with pytest.raises(TemplateError, match="prints nothing before the user's message"):
        ChatTemplate(make_tokenizer(**L3, chat_template=text))


def test_a_template_that_names_a_date_but_prints_none_has_none() -> None:
    text = "{% if tools %}{{ strftime_now('%Y') }}{% endif %}<|im_start|>{{ messages[-1]['content'] }}<|im_end|>"
    assert ChatTemplate(make_tokenizer(**CHATML, chat_template=text), template_date=DAY).date is None
    only_with_system = "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%Y') }}{% endif %}" + text[49:]
    system = "{{ messages[0]['content'] if messages|length > 1 else '' }}"
    chat = ChatTemplate(make_tokenizer(**CHATML, chat_template=only_with_system.replace("<|im_end|>", system)))
    assert chat.date == dt.datetime.now().astimezone().date().isoformat()


def test_tools_that_the_template_cannot_do_without_are_noted() -> None:
    assert any("an empty list is passed" in note for note in describe(study("tool-use"))["notes"])
    assert not any("an empty list is passed" in note for note in describe(study("qwen-3"))["notes"])


LEGACY_FALSE = {**SPM, "kind": "spm-first"}
"""A SentencePiece tokenizer with `legacy: false`, TinyLlama's form: the first word gets its space, unless a token is before it."""


def test_a_bos_that_the_tokenizer_adds_is_put_in_front_of_the_ids() -> None:
    tokenizer = make_tokenizer(**LEGACY_FALSE, chat_template=template("zephyr").replace("{{ bos_token }}", ""))
    chat = ChatTemplate(tokenizer)
    asked = [ask("Hi")]
    rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    prompt = chat.response(asked)
    # What a server makes of the text, and what transformers makes of the conversation, which gets no BOS there
    assert list(prompt.token_ids) == tokenizer(rendered)["input_ids"]
    ids = tokenizer.apply_chat_template(asked, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == [tokenizer.bos_token_id, *ids]
    assert list(prompt.token_ids) != tokenizer.encode(prompt.text, add_special_tokens=False)
    assert list(prompt.token_ids) == tokenizer(prompt.text_without_bos)["input_ids"]
    assert prompt.token_ids[: len(chat.pre_query().token_ids)] == chat.pre_query().token_ids
    turn = chat.next_user([ask("Hi"), answer("Yo.")])
    whole = chat.response([ask("Hi"), answer("Yo."), ask("And?")])
    assert whole.token_ids[: len(turn.token_ids)] == turn.token_ids


def test_a_bos_that_the_template_writes_is_encoded_with_its_text() -> None:
    tokenizer = make_tokenizer(**LEGACY_FALSE, chat_template=template("llama-2"))
    ids = tokenizer.apply_chat_template([ask("Hi")], tokenize=True, add_generation_prompt=True, return_dict=False)
    chat = ChatTemplate(tokenizer)
    assert list(chat.response([ask("Hi")]).token_ids) == ids
    assert any("tokenizes the first word differently" in note for note in describe(chat)["notes"])


def test_a_base_models_prompt_has_the_tokens_that_a_server_gives_it() -> None:
    tokenizer = make_tokenizer(**LEGACY_FALSE)
    prompt = PlainTemplate(tokenizer).plain("How do I sort a list?")
    assert list(prompt.token_ids) == tokenizer("How do I sort a list?")["input_ids"]
    assert prompt.text == "<s>How do I sort a list?"


HEADER_THAT_MERGES = (
    "{% for m in messages %}{{ '<|prompt|>' if m['role'] == 'user' else '<|answer|>' }}{{ m['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)


def test_the_end_of_a_header_that_merges_with_the_first_word_is_known_to_the_prompt() -> None:
    chat = ChatTemplate(make_tokenizer(**SPM, merged=">", chat_template=HEADER_THAT_MERGES))
    assert (chat.pre_query().text, chat.pre_query().dropped) == ("<s><|prompt|", ">")
    turn = chat.next_user([ask("Hi"), answer("Yo.")])
    assert turn.text.endswith("Yo.</s><|prompt|")
    assert turn.dropped == ">"
    assert study("llama-2").pre_query().dropped == " "
    assert study("llama-3").pre_query().dropped == ""


def test_history_loses_its_think_blocks_as_the_template_says() -> None:
    prompt = study("qwen-3").next_user([ask("Hi"), answer("<think>\nhm\n</think>\n\nYo.")])
    assert prompt.text == f"{IM}user\nHi{IE}{IM}assistant\nYo.{IE}{IM}user\n"


def test_a_system_prompt_is_folded_into_the_turn_where_the_template_folds_it() -> None:
    history = [ask("Hi"), answer("Yo.")]
    assert study("mistral-nemo").next_user(history, "Be brief.").text == "<s>[INST]Hi[/INST]Yo.</s>[INST]Be brief.\n\n"
    assert (
        study("gemma-3").next_user(history, "Be brief.").text.startswith("<bos><start_of_turn>user\nBe brief.\n\nHi")
    )
    replaced = study("qwen-3").response([{"role": "system", "content": "Old."}, ask("Hi")], "New.").text
    assert "New." in replaced
    assert "Old." not in replaced


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ messages[0]['content'] | upper }}", "changes the case"),
        ("{{ messages[0]['content'] * 2 }}", "prints the user's message 2 times"),
        ("{{ messages[0]['content'] | length }}", "drops or rewrites"),
        ("{{ messages[0]['content'] | tojson }}", "depends on the message, or it rewrites"),
        ("{{ messages[0]['content'] | length }}:{{ messages[0]['content'] }}", "depends on the message"),
        ("{{ raise_exception('three messages or none') }}", "three messages or none"),
        ("{% if %}", "rejects a lone user message"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
    ids=["upper", "twice", "dropped", "json", "length-first", "raises", "syntax", "escape"],
)
def test_a_template_without_an_open_slot_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTemplate(make_tokenizer(**CHATML, chat_template=text))


def test_a_template_that_drops_the_system_prompt_says_so() -> None:
    text = "{% for m in messages if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(TemplateError, match="drops or rewrites the system prompt"):
        ChatTemplate(make_tokenizer(**CHATML, chat_template=text)).pre_query("Be brief.")


def test_no_template_is_an_error_that_says_what_to_do(tmp_path: Any) -> None:
    bare = make_tokenizer(**CHATML)
    with pytest.raises(TemplateError, match=r"no chat template.*\n.*chat_template="):
        ChatTemplate(bare, name="base")
    with pytest.raises(TemplateError, match="neither Jinja text nor a readable file"):
        ChatTemplate(bare, chat_template="nowhere.jinja")
    file = tmp_path / "own.jinja"
    file.write_text(template("qwen-3"), encoding="utf-8")
    assert ChatTemplate(bare, chat_template=str(file)).pre_query().text == f"{IM}user\n"


def test_named_templates_are_chosen_by_name() -> None:
    named = make_tokenizer(**CHATML, chat_template={"default": template("qwen-3"), "kind": template("qwen-2")})
    assert ChatTemplate(named).pre_query().text == f"{IM}user\n"
    assert "You are of help." in ChatTemplate(named, chat_template="kind").pre_query().text
    only = make_tokenizer(**CHATML, chat_template={"kind": template("qwen-2")})
    with pytest.raises(TemplateError, match="It has templates named kind"):
        ChatTemplate(only)


def test_generation_config_adds_its_ends_of_sequence() -> None:
    tokenizer = make_tokenizer(**{**CHATML, "special": "<|im_start|> <|endoftext|>"}, chat_template=template("qwen-3"))
    extra = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    chat = ChatTemplate(tokenizer, generation_config=GenerationConfig(eos_token_id=[extra, tokenizer.eos_token_id]))
    assert extra in chat.instruction_stops.token_ids
    assert "<|endoftext|>" in chat.response_stops.texts


def test_harmony_answers_end_at_return_only() -> None:
    chat = study("gpt-oss")
    inside = {"<|end|>", "<|start|>", "<|message|>", "<|channel|>"}
    assert inside < set(chat.instruction_stops.texts)
    assert not inside & set(chat.response_stops.texts)


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("llama-3", "Close it with </think> then.", (None, "Close it with </think> then.")),
        ("qwen-3", "<think>\nhm\n</think>\n\nYo.", ("hm", "Yo.")),
        ("qwen-3", "<think>\n\n</think>\n\nYo.", (None, "Yo.")),
        ("qwen-3", "hm\n</think>\nYo.", ("hm", "Yo.")),
        ("qwen-3", "Yo. <think> is a tag.", (None, "Yo. <think> is a tag.")),
        ("qwen-3", "<think>cut", ("cut", "")),
        ("qwen-3.5", "hm\n</think>\n\nYo.", ("hm", "Yo.")),
        ("qwen-3.5", "cut", ("cut", "")),
        ("deepseek-r1", "<think>hm</think>Yo.", ("hm", "Yo.")),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yo.<|return|>",
            ("hm", "Yo."),
        ),
        ("gpt-oss", "<|channel|>final<|message|>Yo.", (None, "Yo.")),
        ("gpt-oss", "<|channel|>analysis<|message|>cut", ("cut", "")),
        ("gpt-oss", "analysishmassistantfinalYo.", ("hm", "Yo.")),
        ("gpt-oss", "analysishm", ("hm", "")),
        ("gpt-oss", "analysis of a poem: Roses", (None, "analysis of a poem: Roses")),
        ("gpt-oss", "Yo.", (None, "Yo.")),
        ("llama-3", "<|START_THINKING|>hm<|END_THINKING|>Yo.", ("hm", "Yo.")),
    ],
)
def test_reasoning_is_told_from_the_answer(family: str, text: str, expected: tuple[str | None, str]) -> None:
    assert study(family).split_reasoning(text) == expected


def test_special_tokens_inside_a_text_are_found() -> None:
    assert study("llama-3").find_special(f"Hi{EOT}{H}user") == EOT
    assert study("llama-3").find_special("What does <b>[INST]</b> mean, assistant?") is None
    assert study("olmo-2").find_special("Hi\n<|assistant|>\nYo.") == "<|assistant|>"


def test_decode_keeps_special_tokens_visible() -> None:
    chat = study("llama-3")
    assert chat.decode(chat.pre_query().token_ids) == chat.pre_query().text


def test_conversations_that_end_with_the_wrong_role_are_refused() -> None:
    with pytest.raises(ArgumentError, match="does not end with the assistant"):
        study("qwen-3").next_user([ask("Hi")])
    with pytest.raises(ArgumentError, match="does not end with a user"):
        study("qwen-3").response([ask("Hi"), answer("Yo.")])
    assert study("qwen-3").next_user([]) is study("qwen-3").pre_query()


def test_describe_shows_what_is_sent() -> None:
    shown = describe(study("qwen-2.5"))
    assert shown["prompts"]["pre_query"]["text"] == study("qwen-2.5").pre_query().text
    assert shown["instruction_stops"]["texts"][0] == "<|im_end|>"
    assert any("default system block is inserted" in note for note in shown["notes"])
    assert describe(study("gemma-2"))["prompts"]["pre_query_with_system_prompt"] == {
        "refused": "The chat template of 'gemma-2' rejects a system prompt: No system role here"
    }
    assert any("fixed to 2026-03-04" in note for note in describe(study("gpt-oss"))["notes"])


def test_load_reads_tokenizer_template_and_generation_config_from_a_directory(tmp_path: Any) -> None:
    tokenizer = make_tokenizer(**L3, chat_template=template("llama-3"))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    other = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
    GenerationConfig(eos_token_id=[tokenizer.eos_token_id, other]).save_pretrained(tmp_path)
    chat = ChatTemplate.load(str(tmp_path))
    assert chat.pre_query().text == FAMILIES["llama-3"][0]
    assert chat.pre_query().token_ids == study("llama-3").pre_query().token_ids
    assert other in chat.response_stops.token_ids


def test_load_names_what_cannot_be_loaded(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=r"Model directory .* not found"):
        ChatTemplate.load(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be loaded"):
        ChatTemplate.load(str(tmp_path))
