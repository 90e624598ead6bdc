"""What becomes of answers: the frame read off each template, and texts of many formats read by it."""

from __future__ import annotations

import pytest

from magpie_hf.engines.base import Generation
from magpie_hf.engines.stops import end_text
from magpie_hf.templates.answer import AnswerFrame, without_common_prefix
from magpie_hf.templates.describe import describe
from magpie_hf.templates.plain import PlainTemplate
from magpie_hf.templates.template import ChatTemplate

from .template_families import make_tokenizer, template
from .template_families.table import CHATML, FAMILIES, SPM
from .test_templates import answer, ask, study


SELF, USER = " to=self<|message|>", "<|start|>assistant to=user<|message|>"
THINKING = "<|START_THINKING|>hm<|END_THINKING|>"
RESPONSE = "<|START_RESPONSE|>Yo.<|END_RESPONSE|>"
KIMI = "<|close|>think<|sep|><|open|>response<|sep|>Yo.<|close|>response<|sep|><|close|>message<|sep|>"


def read(family: str, text: str, ids: list[int] | None = None):
    return study(family).read_answer(Generation(0, text, "stop", token_ids=ids))


@pytest.mark.parametrize(
    ("family", "text", "reasoning", "expected"),
    [
        ("command-r7b", RESPONSE, None, "Yo."),
        ("command-r7b", "<|START_RESPONSE|>Yo.", None, "Yo."),
        ("command-r7b", THINKING + "<|START_RESPONSE|>Yo.", "hm", "Yo."),
        ("command-r7b", "Yo.", None, "Yo."),
        ("cohere2-moe", "hm<|END_THINKING|><|START_TEXT|>Yo.", "hm", "Yo."),
        ("cohere2-moe", "<|END_THINKING|><|START_TEXT|>Yo.<|END_TEXT|>", None, "Yo."),
        ("kimi-k3", f"hm{KIMI}", "hm", "Yo."),
        ("kimi-k3", KIMI, None, "Yo."),
        ("solar-open", "<|think|>hm<|end|><|begin|>assistant<|content|>Yo.", "hm", "Yo."),
        ("solar-open", "<|content|>Yo.", None, "Yo."),
        ("muse", f"{SELF}hm<|eom|>{USER}Yo.", "hm", "Yo."),
        ("muse", " to=user<|message|>Yo.", None, "Yo."),
        ("functionary-2", "all\n<|content|>Yo.", None, "Yo."),
        ("functionary-3", "all\nYo.", None, "Yo."),
        ("hunyuan", "<think>\nhm\n</think>\n<answer>\nYo.\n</answer>", "hm", "Yo."),
        ("hunyuan", "<answer>\nYo.\n</answer>", None, "Yo."),
        ("qwen-3", "<answer>Yo.</answer>", None, "<answer>Yo.</answer>"),
        ("apertus", "<|inner_prefix|>hm<|inner_suffix|>Yo.", "hm", "Yo."),
        ("minicpm-3", "<|thought_start|>\nhm\n<|thought_end|>\nYo.", "hm", "Yo."),
        ("magistral", "[THINK]hm[/THINK]Yo.", "hm", "Yo."),
        ("falcon", " Yo.", None, " Yo."),
    ],
)
def test_an_answer_is_read_without_what_its_format_puts_around_it(family, text, reasoning, expected):
    assert read(family, text) == (reasoning, expected, None, "")


@pytest.mark.parametrize(
    ("family", "text", "special"),
    [
        ("llama-3", "Yo.<|start_header_id|>user<|end_header_id|>\n\nHi", "<|start_header_id|>"),
        ("qwen-3", "<think>\nhm<|im_start|>\n</think>\nYo.", "<|im_start|>"),
        ("kimi-k3", "hm<|close|>think<|sep|><|open|>tools<|sep|>x<|close|>tools<|sep|>", "<|sep|>"),
        ("solar-open", "<|think|>hm<|end|><|begin|>assistant<|tool_calls|>[]", "<|begin|>"),
        ("muse", " to=python<|message|>print(1)", "<|message|>"),
        ("functionary-2", "python\n<|content|>print(1)", "<|content|>"),
        ("apertus", "Yo.<|tools_prefix|>[]<|tools_suffix|>", "<|tools_prefix|>"),
        ("minicpm-3", "<|thought_start|>\nhm\n<|thought_end|>\n<|tool_call_start|>f()", "<|tool_call_start|>"),
        ("command-r7b", "Yo.<|START_THINKING|>", "<|START_THINKING|>"),
        ("gpt-oss", "<|start|>assistant<|message|>Yo.", "<|start|>"),
        ("falcon-3", "Yo.\n<|user|>\nHi", "<|user|>"),
    ],
)
def test_a_special_token_that_is_left_in_an_answer_is_found(family, text, special):
    assert read(family, text).special == special


STRUCK, LISTED = "Use <s>old</s> for it.", "vocab = ['<pad>', '<unk>', '<s>']"


@pytest.mark.parametrize(
    ("family", "text"), [("llama-2", STRUCK), ("llama-2", LISTED), ("gemma-2", "It ends in <eos>.")]
)
def test_an_answer_may_hold_texts_that_are_also_names_of_tokens(family, text):
    assert read(family, text) == (None, text, None, "")


def test_special_tokens_that_look_like_placeholders_count_only_where_the_template_has_them():
    tokenizer = {**CHATML, "special": "<|im_start|> <filename>"}
    source = template("qwen-2.5")
    text = "Run `tar xf <filename>` now."
    for given, found in ((source, None), (source + "{# <filename> #}", "<filename>")):
        chat = ChatTemplate(make_tokenizer(**tokenizer, chat_template=given))
        assert chat.read_answer(Generation(0, text, "stop")).special == found
        assert chat.find_special(text) == found


@pytest.mark.parametrize(
    ("family", "token"),
    [("mistral-nemo", "[INST]"), ("llama-2", "<s>"), ("llama-3", "<|eot_id|>"), ("gemma-2", "<eos>")],
)
def test_token_ids_decide_whether_a_text_is_a_special_token(family, token):
    chat = study(family)
    text = f"The format is {token} and more."
    spelled = [i for letter in text for i in chat.tokenizer.encode(letter, add_special_tokens=False)]
    assert read(family, text, spelled).special is None
    assert chat.find_special(text, spelled) is None
    special = chat.tokenizer.encode(text, add_special_tokens=False)
    assert read(family, text, special).special == token
    assert chat.find_special(text, special) == token


def test_a_mark_that_is_no_token_is_found_whatever_the_ids():
    chat = study("olmo-2")
    text = "Yo.\n<|user|>\nHi"
    ids = chat.tokenizer.encode(text, add_special_tokens=False)
    assert read("olmo-2", text, ids).special == chat.find_special(text, ids) == "<|user|>"


def test_a_base_models_text_may_hold_names_of_tokens_too():
    plain = PlainTemplate(study("llama-2").tokenizer)
    assert plain.find_special(STRUCK) is None
    assert plain.find_special(STRUCK, plain.tokenizer.encode(STRUCK, add_special_tokens=False)) == "<s>"


def test_an_answer_may_speak_of_think_tags_that_are_ordinary_tokens():
    assert read("qwen-3", "Yo. <think> is a tag.") == (None, "Yo. <think> is a tag.", None, "")


def test_a_closing_tag_alone_ends_reasoning_only_where_the_template_knows_the_tag():
    assert study("qwen-3").split_reasoning("hm\n</think>\nYo.") == ("hm", "Yo.")
    assert study("qwen-2.5").split_reasoning("Write </think> then.") == (None, "Write </think> then.")
    assert study("qwen-2.5").split_reasoning("<think>hm</think>Yo.") == ("hm", "Yo.")
    assert not study("qwen-2.5").can_think


def test_an_answer_to_a_tool_lacks_the_words_that_every_answer_begins_with():
    assert read("functionary-3", "get_weather\n{}").misses == "all"
    assert read("functionary-3", "get_weather\n{}<|eot_id|>").misses == "all"
    assert read("functionary-3", "all\nYo.").misses == ""
    assert read("functionary-3", "all\nall is well<|eot_id|>") == (None, "all is well", None, "")


@pytest.mark.parametrize("text", ["all is well", "allow me"])
def test_the_words_before_an_answer_come_off_only_with_the_line_break_behind_them(text):
    assert read("functionary-3", text) == (None, text, None, "all")


@pytest.mark.parametrize(
    "text",
    [
        "<thinking_steps>1</thinking_steps> done",
        "<rethink>a</rethink> b",
        "<thought_process>x</thought_process> y",
        "<thinking>is a tag</thinking> here",
    ],
)
def test_tags_that_only_look_like_reasoning_stay_in_the_answer(text):
    assert read("qwen-2.5", text) == (None, text, None, "")


@pytest.mark.parametrize(
    "text", ["<think>hm</think>Yo.", "<|thought_start|>hm<|thought_end|>Yo.", "[THINK]hm[/THINK]Yo."]
)
def test_tags_of_the_field_are_reasoning_whatever_the_template_says(text):
    assert study("qwen-2.5").split_reasoning(text) == ("hm", "Yo.")


def test_a_closing_tag_alone_ends_nothing_where_the_prompt_has_closed_the_reasoning():
    tokenizer = make_tokenizer(**CHATML, chat_template=template("qwen-3"))
    chat = ChatTemplate(tokenizer, template_kwargs={"enable_thinking": False})
    text = "In HTML-ish text, </think> closes it."
    assert chat.split_reasoning(text) == (None, text)
    assert chat.split_reasoning("<think>\nhm\n</think>\n\nYo.") == ("hm", "Yo.")


def test_special_tokens_that_a_server_left_out_of_its_text_are_seen_in_the_ids():
    tokenizer = study("solar-open").tokenizer
    hidden = tokenizer.convert_tokens_to_ids("<|flush|>")
    ids = [*tokenizer.encode("Yo."), hidden, *tokenizer.encode("Hi")]
    assert read("solar-open", "Yo.Hi", ids).special == "<|flush|>"
    moe = study("cohere2-moe").tokenizer
    ids = moe.encode("hm<|END_THINKING|><|START_TEXT|>Yo.", add_special_tokens=False)
    assert read("cohere2-moe", "hmYo.", ids) == ("hm", "Yo.", None, "")


def shown_reasoning(chat: ChatTemplate) -> dict[str, str] | None:
    """Return an assistant's message in the form in which the template shows reasoning, if it takes one as a field."""
    for name in ("reasoning_content", "reasoning", "thought"):
        message = {**answer("Yo."), name: "hm"}
        if "hm" in chat._render([ask("Hi"), message], generation=False):
            return message
    return None


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_template_prints_for_an_answer_is_read_back(family):
    chat = study(family)
    message = shown_reasoning(chat)
    for given in filter(None, (answer("Yo."), message)):
        prompt = chat.response([ask("Hi")]).text
        shown = chat._complete(chat._render([ask("Hi"), given], generation=False))
        written = without_common_prefix(shown, prompt, chat._vocabulary)
        stops = chat.response_stops
        ends = [text for text in stops.texts if text not in stops.plain_texts]
        cut = end_text(written, "stop", turn_ends=ends, stops=stops.plain_texts).text
        if given is not message and chat.opened_think:
            continue  # the prompt has opened a think block: no such answer without one
        found = chat.read_answer(Generation(0, cut, "stop"))
        assert (found.reasoning, found.text.strip(), found.special) == (
            given and ("hm" if given is message else None),
            "Yo.",
            None,
        )


@pytest.mark.parametrize(
    ("family", "opens", "closes", "opened"),
    [
        ("kimi-k3", "", "<|close|>", True),
        ("cohere2-moe", "<|START_THINKING|>", "<|END_THINKING|>", True),
        ("solar-open", "<|think|>", "<|end|>", False),
        ("muse", "to=self<|message|>", "<|eom|>", False),
        ("magistral", "[THINK]", "[/THINK]", False),
        ("apertus", "<|inner_prefix|>", "<|inner_suffix|>", False),
        ("minicpm-3", "<|thought_start|>", "<|thought_end|>", False),
    ],
)
def test_the_frame_of_reasoning_is_read_off_a_rendering(family, opens, closes, opened):
    frame = study(family).answer_frame
    assert (tuple(frame.tags or ()), frame.opened) == ((opens, closes), opened)


def test_a_template_that_shows_no_reasoning_has_no_frame_of_it():
    for family in ("llama-3", "qwen-2.5", "mistral-v0.1", "zephyr"):
        assert study(family).answer_frame.tags is None
    assert isinstance(study("llama-2").answer_frame, AnswerFrame)


def test_invented_tags_are_derived_where_the_template_prints_them():
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.thinking %}{{ '<<musing>>' + m.thinking + "
        "'<<done>>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = ChatTemplate(make_tokenizer(**CHATML, chat_template=source))
    assert chat.split_reasoning("<<musing>>hm<<done>>Yo.") == ("hm", "Yo.")
    assert chat.split_reasoning("Yo.") == (None, "Yo.")


def test_marks_that_the_model_writes_before_its_answer_are_no_stops():
    stops = {family: set(study(family).response_stops.texts) for family in FAMILIES}
    assert not {"<|START_TEXT|>", "<|END_THINKING|>"} & stops["cohere2-moe"]
    assert {"<|END_TEXT|>", "<|END_OF_TURN_TOKEN|>"} <= stops["cohere2-moe"]
    assert stops["kimi-k3"] == {"<|end_of_msg|>"}
    assert not {"<|end|>", "<|begin|>", "<|content|>"} & stops["solar-open"]
    assert not {"<|eom|>", "<|start|>", "<|message|>"} & stops["muse"]


def test_the_true_end_stops_an_answer_whose_last_one_ends_as_a_past_one():
    assert "<|stop|>" in study("functionary-2").response_stops.texts
    source = template("solar-open").replace("<|flush|>", "<|stop|>").replace("'<|end|>')", "'<|stop|>')")
    kind = {"kind": "llama3", "bos": None, "eos": "<|endoftext|>", "added": "<|begin|> <|end|> <|content|> <|stop|>"}
    assert ChatTemplate(make_tokenizer(**kind, chat_template=source)).response_stops.texts[0] == "<|stop|>"


@pytest.mark.parametrize(("family", "end"), [("falcon", "\nUser:"), ("solar", "### User:"), ("chatqa", "\n\nUser:")])
def test_an_answer_of_plain_text_ends_where_the_next_user_would_begin(family, end):
    assert study(family).response_stops.plain_texts == (end,)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_textual_end_is_added_where_a_mark_ends_the_answer(family):
    chat = study(family)
    marked = chat._vocabulary.holds_mark(chat.frame.after_answer)
    words = [text for text in chat.response_stops.plain_texts if not chat._vocabulary.holds_mark(text)]
    assert not (marked and words)


def test_a_template_of_one_turn_still_loads():
    source = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}<s>Q: {{ messages[0].content }}\nA:"
    )
    chat = ChatTemplate(make_tokenizer(**SPM, chat_template=source))
    assert chat.response_stops.texts == ("</s>", "<s>")
    assert chat.split_reasoning("Yo.") == (None, "Yo.")


def test_what_stands_around_reasoning_and_answers_is_described():
    notes = describe(study("solar-open"))["notes"]
    assert "The template prints reasoning between '<|think|>' and '<|end|>'." in notes
    assert "Responses begin with '<|content|>', which is removed." in notes
    assert "Responses begin with '<|START_RESPONSE|>', which is removed." in describe(study("command-r7b"))["notes"]
    assert not any("removed" in note or "reasoning" in note for note in describe(study("llama-3"))["notes"])
