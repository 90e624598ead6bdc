"""Rubrics with a prompt, a prefill, stops and a parser of their own: what is sent, and how the reply is read."""

from __future__ import annotations

import json

import pytest
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import magpie_hf
from magpie_hf.engines import ENGINES
from magpie_hf.errors import ArgumentError, MagpieError, RecipeError, TemplateError
from magpie_hf.judging.answers import read_answer
from magpie_hf.judging.placeholders import fill
from magpie_hf.judging.rubric import BUILT_IN, load_rubric, user_message
from magpie_hf.recipe.schema import load_recipe
from magpie_hf.stages import stage_class
from magpie_hf.templates.template import ChatTemplate
from tests.scripted_engine import ScriptedEngine
from tests.template_families import make_tokenizer, template
from tests.template_families.table import FAMILIES, TOKENIZERS
from tests.test_templates import study


PUBLISHED = """\
name: tone
reads: [instruction]
prompt: |-
  # Instruction

  Say how polite the query below is.

  ## Query
  ```
  {instruction}
  ```

  ## Output Format
  Replace the placeholders in [] of this object, and keep {{braces}} and { } as they are:
  ```
  {
      "why": "[...]",
      "tone": "[rude/plain/polite]"
  }
  ```
prefill: "{"
stop: "}"
schema:
  type: object
  properties:
    why: {type: string}
    tone: {type: string, enum: [rude, plain, polite]}
"""
SENT = """\
<|begin_of_text|><|start_header_id|>user<|end_header_id|>

# Instruction

Say how polite the query below is.

## Query
```
Why is {instruction} not { filled }?
```

## Output Format
Replace the placeholders in [] of this object, and keep {braces} and { } as they are:
```
{
    "why": "[...]",
    "tone": "[rude/plain/polite]"
}
```<|eot_id|><|start_header_id|>assistant<|end_header_id|>

{"""
SCORE = {
    "name": "score",
    "prompt": "Rate the answer to [{instruction}] from 1 to 10, as [[5]]:\n{response}",
    "reads": ["instruction", "response"],
    "parser": "regex",
    "pattern": r"\[\[(?P<score>\d+)\]\]",
    "schema": {"type": "object", "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 10}}},
}


@pytest.fixture
def judge(monkeypatch, tmp_path, tiny_model_dir):
    """Return a function that makes the settings of a judge with the chat template of Llama 3."""
    monkeypatch.setitem(ENGINES, "scripted", "tests.scripted_engine:ScriptedEngine")
    ScriptedEngine.reset()
    tokenizer = make_tokenizer(**TOKENIZERS["llama-3"], chat_template=template("llama-3"))
    place = tmp_path / "judge"
    tokenizer.save_pretrained(place)
    (place / "config.json").write_text((tiny_model_dir / "config.json").read_text())

    def spec(answer):
        ScriptedEngine.answer = staticmethod(answer)
        return {"model": str(place), "engine": {"kind": "scripted"}}

    return spec


@pytest.fixture
def tone(tmp_path):
    path = tmp_path / "tone.yaml"
    path.write_text(PUBLISHED)
    return str(path)


def rows(*instructions):
    return Dataset.from_dict({"instruction": list(instructions)})


def own(**changes):
    return {**yaml.safe_load(PUBLISHED), **changes}


def annotated(data, rubric, engine, tmp_path):
    return magpie_hf.annotate(data, [{"stage": "rubric", "rubric": rubric}], judge=engine, output=tmp_path / "run")


def test_a_published_prompt_is_sent_as_it_is_typed_with_its_prefill_and_stop(judge, tone, tmp_path):
    engine = judge(lambda r, n: ('"why": "It asks.", "tone": "plain"', "stop_text"))
    ScriptedEngine.json_schema = True
    ds = annotated(rows("Why is {instruction} not { filled }?"), tone, engine, tmp_path)
    (asked,) = ScriptedEngine.asked
    assert asked.prompt.text == SENT
    assert asked.sampling.stop[0] == "}"
    assert asked.sampling.json_schema is None, "the judge writes only a part of the object"
    assert (ds[0]["tone_tone"], ds[0]["tone_why"], ds[0]["tone_error"]) == ("plain", "It asks.", None)


def test_tokens_are_those_of_the_whole_prompt_with_the_prefill():
    chat = study("llama-3")
    prompt = chat.response([{"role": "user", "content": "Hi there?"}], prefill="{")
    assert prompt.text == chat.response([{"role": "user", "content": "Hi there?"}]).text + "{"
    assert list(prompt.token_ids) == chat.tokenizer.encode(prompt.text, add_special_tokens=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefill_begins_where_the_template_puts_the_answer_and_not_the_reasoning(family):
    chat = study(family)
    messages = [{"role": "user", "content": "Hi there?"}]
    filled, shown = chat.response(messages, prefill="{").text, {"role": "assistant", "content": "{..."}
    history = chat._complete(chat._render([*messages, shown], generation=False))
    assert history.startswith(filled)
    assert filled.startswith(chat.bos) == chat.response(messages).text.startswith(chat.bos)


def test_a_template_without_a_place_for_the_prefill_is_refused_before_the_first_request(judge, tone, tmp_path):
    text = "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('Users only.') }}{% endif %}<|start_header_id|>{{ m.content }}{% endfor %}<|eot_id|>"
    given = {**judge(lambda r, n: ""), "template": {"chat_template": text}}
    with pytest.raises(
        TemplateError, match=r"rejects a conversation that ends with the assistant's message: Users only\."
    ):
        annotated(rows("Why?"), tone, given, tmp_path)
    changed = text.replace("{{ raise_exception('Users only.') }}", "")
    chat = ChatTemplate(
        make_tokenizer(
            **TOKENIZERS["llama-3"],
            chat_template=changed.replace("m.content", "m.content|upper if m.role != 'user' else m.content"),
        ),
        name="upper",
    )
    with pytest.raises(TemplateError, match=r"no place for the beginning of an answer \(prefill\)"):
        chat.response([{"role": "user", "content": "Hi"}], prefill="{")
    assert ScriptedEngine.asked == []


def test_a_cut_reply_of_a_prefilled_judge_is_retried_and_saved_with_its_prefill(judge, tone, tmp_path):
    ds = annotated(rows("Why?"), tone, judge(lambda r, n: ('"why": "It', "length")), tmp_path)
    first, second = ScriptedEngine.asked
    assert second.prompt.text == first.prompt.text
    assert second.sampling.max_tokens == 2 * first.sampling.max_tokens
    assert (ds[0]["tone_tone"], ds[0]["tone_error"]) == (None, "unparsable")
    assert ds[0]["tone_raw"] == '{"why": "It'


def test_a_pattern_reads_the_first_match_of_a_reply_in_words(judge, tmp_path):
    data = Dataset.from_dict({"instruction": ["Joke?"], "response": ["Knock."]})
    ds = annotated(data, SCORE, judge(lambda r, n: "It is fine, so: [[7]], not [[2]]."), tmp_path)
    assert ScriptedEngine.asked[0].prompt.text.count("[Joke?] from 1 to 10, as [[5]]:\nKnock.") == 1
    assert (ds[0]["score_score"], ds[0]["score_error"]) == (7, None)
    rubric = load_rubric(SCORE)
    assert read_answer("Rating: [[70]]", rubric) == ({"score": None}, "unparsable")
    assert read_answer("Seven.", rubric) == ({"score": None}, "unparsable")


def test_a_pattern_that_backtracks_without_end_does_not_stop_the_run(monkeypatch):
    monkeypatch.setattr("magpie_hf.judging.patterns.TIMEOUT_S", 0.05)
    endless = {**yaml.safe_load(PUBLISHED), "parser": "regex", "pattern": "(?P<why>(?P<tone>a|aa|a?)+)b c"}
    assert read_answer("a" * 60 + " b c", load_rubric(endless)).code == "unparsable"  # 2^60 ways to split the a's


def test_only_the_beginning_of_a_very_long_reply_is_searched():
    rubric = load_rubric(SCORE)
    assert read_answer("x" * 19_000 + "[[5]]", rubric).values == {"score": 5}
    assert read_answer("x" * 21_000 + "[[5]]", rubric).code == "unparsable"


@given(st.text(max_size=200))
def test_the_text_of_a_row_is_never_read_as_a_template(text):
    assert fill("a {instruction} b {{instruction}} { {0} {} %s", {"instruction": text}) == (
        f"a {text} b {{instruction}} {{ {{0}} {{}} %s"
    )


@pytest.mark.parametrize(
    ("rubric", "words"),
    [
        (own(prompt="Rate {instrution}."), ["'instrution'", '"instruction"', "{{instrution}}"]),
        (own(prompt="Rate it."), ["no place for the column 'instruction'"]),
        (own(reads=["instruction", "response"]), ["no place for the column 'response'"]),
        (own(stop=["}", ""]), ["Invalid stop"]),
        (own(stop=3), ['"stop" of a rubric must be a text or a list of texts']),
        (own(prefill=["{"]), ['"prefill" of a rubric must be text']),
        (own(parser="jsno"), ["Unknown parser", '"json"']),
        (own(pattern="x"), ['its parser is "json"', "parser: regex"]),
        ({**SCORE, "pattern": ""}, ["it is missing"]),
        ({**SCORE, "pattern": "(?P<score>"}, ["Invalid pattern"]),
        ({**SCORE, "pattern": r"(?P<scroe>\d)"}, ["'scroe'", '"score"']),
        ({**SCORE, "pattern": r"(\d)"}, ["no group for the key 'score'"]),
        ({**SCORE, "pattern": "(?P<score>" + "1" * 3000 + ")"}, ["more than 2,000 characters"]),
        (own(set="reference"), ['The set "reference" is built in']),
        ("reference/qualty", ['"reference/quality"']),
    ],
)
def test_a_form_that_cannot_be_used_says_why(rubric, words):
    with pytest.raises(MagpieError) as caught:
        load_rubric(rubric)
    for word in words:
        assert word in str(caught.value)


def test_a_form_of_its_own_is_in_the_identity_and_its_absence_changes_none():
    plain = {"name": "mine", "task": "Rate.", "schema": yaml.safe_load(PUBLISHED)["schema"]}
    known = {"name", "version", "task", "keys", "schema", "reads", "aliases", "columns"}
    assert {*load_rubric(plain).to_dict()} == {*load_rubric("quality").to_dict()} == known
    forms = [{}, {"prompt": "x {instruction}"}, {"prefill": "{"}, {"stop": ["}"]}, {"set": "mine"}]
    assert len({json.dumps(load_rubric({**plain, **form}).to_dict()) for form in forms}) == len(forms)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_reference_set_has_the_keys_labels_and_columns_of_the_default_set(name):
    ours, reference = load_rubric(name), load_rubric(f"reference/{name}")
    assert [*reference.properties] == [*ours.properties]
    labels = [[kind.get("enum") for kind in rubric.properties.values()] for rubric in (ours, reference)]
    assert labels[0] == labels[1]
    assert [entry.name for entry in reference.entries] == [entry.name for entry in ours.entries]
    assert (reference.prefill, reference.stop, reference.tag, ours.tag) == ("{", ("}",), "reference-v1", "default-v1")
    message = user_message([reference], {"instruction": "What is 2+2?"})
    before, after = message.split("```\nWhat is 2+2?\n```")
    assert len(before) > 100
    assert all(label in before + after for label in reference.properties[[*reference.properties][-1]].get("enum", []))
    assert len(after) > 100, "the message is in the middle"


def test_the_set_is_named_once_for_all_stages_and_each_row_says_which_made_its_labels(judge, tmp_path):
    replies = {
        "explanation": '"explanation": "Clear.", "input_quality": "average"',
        "intent": '"intent": "To know.", "knowledge": "Facts.", "difficulty": "hard"',
        "primary_tag": '"primary_tag": "Math", "other_tags": []',
    }

    def answer(request, number):
        return next(reply for key, reply in replies.items() if f'"{key}"' in request.prompt.text), "stop_text"

    ds = magpie_hf.annotate(
        rows("Why?"), [*BUILT_IN], judge=judge(answer), judge_rubrics="reference", judge_mode="combined",
        output=tmp_path / "run",
    )  # fmt: skip
    assert len(ScriptedEngine.asked) == 3, "rubrics with prompts of their own are asked one by one"
    assert (ds[0]["input_quality"], ds[0]["difficulty"], ds[0]["task_category"]) == ("average", "hard", "Math")
    assert [ds[0][f"{name}_rubric"] for name in BUILT_IN] == ["reference-v1"] * 3
    assert all(request.prompt.text.endswith("<|end_header_id|>\n\n{") for request in ScriptedEngine.asked)


def test_a_stage_may_name_its_set_and_the_default_set_is_the_same_stage_as_none():
    named = {"model": "demo", "judge": {"rubrics": "reference"}}
    stages = [
        "instructions",
        "quality",
        {"stage": "difficulty", "rubrics": "default"},
        {"stage": "category", "rubrics": "x.yaml"},
    ]
    with pytest.raises(RecipeError, match="Cannot read the rubric"):
        load_recipe({**named, "stages": stages})
    found = load_recipe({**named, "stages": stages[:3]}).stages
    assert [stage.rubrics for stage in found[1:]] == [("reference/quality",), ("difficulty",)]
    assert [stage.label for stage in found[1:]] == ["quality", "difficulty"]
    plain = load_recipe({"model": "demo", "stages": ["instructions", "quality"]})
    spelled = load_recipe({"model": "demo", "judge": {"rubrics": "default"}, "stages": ["instructions", "quality"]})
    assert plain.stages == spelled.stages
    assert plain.hash == spelled.hash != load_recipe({**named, "stages": stages[:2]}).hash
    assert plain.stages[1].parameters() != found[1].parameters()


def test_a_set_that_does_not_exist_or_cannot_share_a_request_is_refused():
    with pytest.raises(RecipeError, match=r"judge\.rubrics: 'refrence' is not one of default, reference"):
        load_recipe({"model": "demo", "judge": {"rubrics": "refrence"}, "stages": ["instructions", "quality"]})
    with pytest.raises(RecipeError, match=r"stages\[1\].*cannot share a request"):
        load_recipe({"model": "demo", "judge": {"rubrics": "reference"}, "stages": ["instructions", "judge"]})
    with pytest.raises(ArgumentError, match="Unknown rubric 'reference'"):
        stage_class("rubric")(rubric="reference")


def test_a_rehearsal_on_the_demo_model_keeps_the_set_and_takes_one():
    raw = {
        "model": "me/model",
        "judge": {"model": "me/judge", "rubrics": "reference"},
        "stages": ["instructions", "quality"],
    }
    assert load_recipe(raw, {"model": "demo"}).stages[1].rubrics == ("reference/quality",)
    raw["judge"] = {"model": "me/judge"}
    found = load_recipe(raw, {"model": "demo", "judge.rubrics": "reference"})
    assert (found.roles["judge"].model, found.stages[1].rubrics) == ("demo", ("reference/quality",))


def test_a_chat_api_is_refused_before_the_first_row_because_it_cannot_continue_a_reply(demo_model_dir, tmp_path):
    from tests.servers.completions_server import CompletionsServer

    with CompletionsServer(demo_model_dir, model_id="demo") as server:
        given = {"model": "demo", "engine": {"kind": "chat", "endpoint": f"{server.url}/v1"}}
        with pytest.raises(TemplateError, match="cannot continue the beginning of a reply") as caught:
            magpie_hf.annotate(
                rows("Why?"), ["quality"], judge=given, judge_rubrics="reference", output=tmp_path / "r"
            )
    assert "rubrics: default" in caught.value.hint
