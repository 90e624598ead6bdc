"""TRL reads exported rows: token ids equal the chat template, labels cover the responses alone, no row is dropped."""

from __future__ import annotations

import pytest
from datasets import Dataset, load_dataset

import magpie_hf
from magpie_hf.errors import ArgumentError
from tests.exports.shapes import (
    REASONING,
    SEVERAL,
    SINGLE,
    WITH_SYSTEM,
    WORSE,
    chats,
    pairs,
    tool_rows,
    turn,
)


trl = pytest.importorskip("trl")
SHAPES = {"one turn": chats(SINGLE), "several turns": chats(SEVERAL), "system prompt": chats(WITH_SYSTEM)}
MASKED = -100


def tokenizer_with(model, template=None):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def template_file(name, place):
    """Return the file of a template that TRL bundles."""
    import trl.chat_template_utils as bundled

    file = place / f"{name}.jinja"
    file.write_text(getattr(bundled, f"{name}_chat_template"), "utf-8")
    return file


def trainer_of(kind, rows, model, place, tokenizer=None, **settings):
    """Return a trainer of TRL that has read the rows."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(place), max_steps=1, report_to=[], save_strategy="no", use_cpu=True,
        bf16=False, disable_tqdm=True, **{"per_device_train_batch_size": 2, **settings},
    )  # fmt: skip
    load = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    more = {"num_labels": 1} if kind == "Reward" else {}
    extra = {"reward_funcs": exact_match} if kind == "GRPO" else {}
    return getattr(trl, f"{kind}Trainer")(
        model=load.from_pretrained(str(model), **more),
        processing_class=tokenizer or tokenizer_with(model),
        train_dataset=rows,
        args=config,
        **extra,
    )


def exact_match(completions, response, **columns):
    """Reward completions that equal the response of the row: the columns of the export reach reward functions."""
    assert all(len(values) == len(completions) for values in columns.values() if isinstance(values, list))
    return [float(said[0]["content"] == right) for said, right in zip(completions, response, strict=True)]


def trained_parts(row, tokenizer):
    """Return the texts of a row with labels, one for each uninterrupted span."""
    spans, before = [], MASKED
    for label in row["labels"]:
        if label != MASKED:
            spans += [[]] if before == MASKED else []
            spans[-1].append(label)
        before = label
    return [tokenizer.decode(span) for span in spans]


def responses(messages, tokenizer, **more):
    """Return what the template prints from each generation prompt to the end of the assistant's message."""

    def render(count, **also):
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, **more, **also)

    return [
        render(at + 1).removeprefix(render(at, add_generation_prompt=True))
        for at, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_sft_sees_the_chat_template_and_drops_no_row(shape, demo_model_dir, tmp_path):
    rows = magpie_hf.export(SHAPES[shape], "trl-sft")
    tokenizer = tokenizer_with(demo_model_dir)
    read = trainer_of("SFT", rows, demo_model_dir, tmp_path).train_dataset
    assert [tokenizer.decode(row["input_ids"]) for row in read] == [
        tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_sft_on_responses_alone_masks_everything_else(shape, demo_model_dir, tmp_path):
    """TRL knows the template of Llama 3, which prints the same text as the template of the demo model."""
    from trl.chat_template_utils import llama3_chat_template

    rows = magpie_hf.export(SHAPES[shape], "trl-sft")
    tokenizer = tokenizer_with(demo_model_dir)
    expected = responses(rows[0]["messages"], tokenizer)
    patched = tokenizer_with(demo_model_dir, llama3_chat_template)
    read = trainer_of("SFT", rows, demo_model_dir, tmp_path, patched, assistant_only_loss=True).train_dataset
    assert tokenizer.decode(read[0]["input_ids"]) == tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    assert trained_parts(read[0], tokenizer) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_prompt_and_completion_train_on_the_last_response_alone(shape, demo_model_dir, tmp_path):
    rows = magpie_hf.export(SHAPES[shape], "trl-prompt-completion")
    tokenizer = tokenizer_with(demo_model_dir)
    read = trainer_of("SFT", rows, demo_model_dir, tmp_path).train_dataset
    messages = rows[0]["prompt"] + rows[0]["completion"]
    assert tokenizer.decode(read[0]["input_ids"]) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert trained_parts(read[0], tokenizer) == responses(messages, tokenizer)[-1:]


@pytest.mark.parametrize(
    ("name", "form"),
    [("qwen3", "reasoning_content"), ("gptoss", "thinking"), ("glm4moe", "reasoning_content"), ("llama3", "content")],
)
def test_reasoning_reaches_the_tokens_in_the_form_of_the_template(name, form, demo_model_dir, tmp_path):
    template = template_file(name, tmp_path)
    source = chats(SINGLE, SINGLE, reasoning=[REASONING, None])
    rows = magpie_hf.export(source, "trl-sft", model=str(demo_model_dir), chat_template=str(template))
    assert rows.to_list() == magpie_hf.export(source, "trl-sft", reasoning=form).to_list()
    tokenizer = tokenizer_with(demo_model_dir, template.read_text("utf-8"))
    read = trainer_of("SFT", rows, demo_model_dir, tmp_path, tokenizer).train_dataset
    text = tokenizer.decode(read[0]["input_ids"])
    assert text == tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False)
    assert text.index(REASONING) < text.index(SINGLE[1]["content"])
    assert REASONING not in tokenizer.decode(read[1]["input_ids"])


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("reasoning_content", "qwen3 qwen3_5_think qwen3_6 qwen3_8 glm4moe lfm2_2_5 nemotron_3_nano muse_glimmer"),
        ("thinking", "gptoss"),
        ("content", "llama3 llama3_1 llama3_2 qwen2_5 gemma gemma3 phi3 cohere lfm2 qwen3_instruct_2507"),
        (None, "deepseek_r1_distill deepseekv3"),
    ],
)
def test_the_form_is_chosen_from_the_templates_of_released_models(form, names, demo_model_dir, tmp_path):
    source = chats(SINGLE, reasoning=[REASONING])
    for name in names.split():
        settings = {"model": str(demo_model_dir), "chat_template": str(template_file(name, tmp_path))}
        if form is None:
            with pytest.raises(ArgumentError, match="prints no reasoning in any form"):
                magpie_hf.export(source, "trl-sft", **settings)
            continue
        made = magpie_hf.export(source, "trl-sft", **settings)
        assert made.to_list() == magpie_hf.export(source, "trl-sft", reasoning=form).to_list(), name


def test_a_template_that_removes_reasoning_is_an_error(demo_model_dir, tmp_path):
    """DeepSeek-R1's template cuts the text before </think> out of every assistant message."""
    template = str(template_file("deepseek_r1_distill", tmp_path))
    source = chats(SINGLE, reasoning=[REASONING])
    with pytest.raises(ArgumentError, match="prints no reasoning in any form"):
        magpie_hf.export(source, "trl-sft", model=str(demo_model_dir), chat_template=template)
    made = magpie_hf.export(source, "trl-sft", model=str(demo_model_dir), chat_template=template, reasoning="content")
    assert REASONING in made[0]["messages"][1]["content"]


def test_tools_and_tool_calls_reach_the_tokens(demo_model_dir, tmp_path):
    rows = magpie_hf.export(tool_rows(), "trl-sft")
    tokenizer = tokenizer_with(demo_model_dir, template_file("qwen3", tmp_path).read_text("utf-8"))
    read = trainer_of("SFT", rows, demo_model_dir, tmp_path, tokenizer).train_dataset
    text = tokenizer.decode(read[0]["input_ids"])
    assert text == tokenizer.apply_chat_template(rows[0]["messages"], tools=rows[0]["tools"], tokenize=False)
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in text
    assert "null" not in text
    masked = trainer_of("SFT", rows, demo_model_dir, tmp_path, tokenizer, assistant_only_loss=True).train_dataset
    called, answered = trained_parts(masked[0], tokenizer)
    assert "<tool_call>" in called
    assert "It is sunny." in answered
    assert "Rome?" not in called + answered
    assert "Sunny." not in called + answered


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Give the conversations of a small run on the demo model."""
    place = tmp_path_factory.mktemp("run")
    stages = ["instructions", "responses", {"stage": "turns", "turns": 2}]
    magpie_hf.run({"model": "demo", "num_rows": 16, "sampling": {"max_tokens": 64}, "stages": stages}, output=place)
    return load_dataset("parquet", data_files=str(place / "data" / "*.parquet"), split="train")


def test_the_model_finds_its_own_responses_likely_and_other_roles_unlikely(generated, demo_model_dir, tmp_path):
    rows = magpie_hf.export(generated, "trl-sft")
    assert first_loss(rows, demo_model_dir, tmp_path) < 1.0
    names = {"user": "human", "assistant": "gpt"}
    unmapped = [[turn(names[said["role"]], said["content"]) for said in messages] for messages in rows["messages"]]
    assert first_loss(Dataset.from_dict({"messages": unmapped}), demo_model_dir, tmp_path) > 2.0


def test_responses_are_likely_and_instructions_in_their_place_are_not(generated, demo_model_dir, tmp_path):
    rows = magpie_hf.export(generated.remove_columns("messages"), "trl-prompt-completion")
    own = first_loss(rows, demo_model_dir, tmp_path)
    swapped = Dataset.from_list(
        [
            {
                "prompt": [turn("user", row["completion"][0]["content"])],
                "completion": [turn("assistant", row["prompt"][0]["content"])],
            }
            for row in rows
        ]
    )
    # The toy model copies much of its prompt, so the swapped loss is lower than that of a real model.
    assert first_loss(swapped, demo_model_dir, tmp_path) > max(1.0, 10 * own)
    assert own < 1.0


def first_loss(rows, model, place):
    trainer = trainer_of("SFT", rows, model, place, logging_steps=1, per_device_train_batch_size=16)
    assert len(trainer.train_dataset) == len(rows)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


PAIRS = pairs(
    (SINGLE, WORSE), (SEVERAL, [*SEVERAL[:3], turn("assistant", "7")]), (WITH_SYSTEM, [WITH_SYSTEM[0], *WORSE])
)


def test_dpo_sees_the_chat_template_of_both_sides(demo_model_dir, tmp_path):
    rows = magpie_hf.export(PAIRS, "trl-dpo")
    tokenizer = tokenizer_with(demo_model_dir)
    trainer = trainer_of("DPO", rows, demo_model_dir, tmp_path)
    assert len(trainer.train_dataset) == len(PAIRS)
    for row, source in zip(trainer.train_dataset, PAIRS, strict=True):
        for side in ("chosen", "rejected"):
            whole = tokenizer.apply_chat_template(source[side], tokenize=False)
            assert tokenizer.decode(row["prompt_ids"] + row[f"{side}_ids"]) == whole
        prompt = tokenizer.apply_chat_template(source["chosen"][:-1], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(row["prompt_ids"]) == prompt
    trainer.train()


def test_kto_sees_one_row_for_each_side(demo_model_dir, tmp_path):
    rows = magpie_hf.export(PAIRS, "trl-kto")
    tokenizer = tokenizer_with(demo_model_dir)
    trainer = trainer_of("KTO", rows, demo_model_dir, tmp_path)
    read = [tokenizer.decode(row["prompt_ids"] + row["completion_ids"]) for row in trainer.train_dataset]
    sides = [row[side] for row in PAIRS for side in ("chosen", "rejected")]
    assert sorted(read) == sorted(tokenizer.apply_chat_template(messages, tokenize=False) for messages in sides)
    trainer.train()


def test_reward_sees_both_conversations(demo_model_dir, tmp_path):
    rows = magpie_hf.export(PAIRS, "trl-reward")
    tokenizer = tokenizer_with(demo_model_dir)
    trainer = trainer_of("Reward", rows, demo_model_dir, tmp_path)
    for row, source in zip(trainer.train_dataset, PAIRS, strict=True):
        for side in ("chosen", "rejected"):
            assert tokenizer.decode(row[f"{side}_ids"]) == tokenizer.apply_chat_template(source[side], tokenize=False)
    trainer.train()


def test_grpo_gives_responses_and_labels_to_reward_functions(demo_model_dir, tmp_path):
    rows = magpie_hf.export(chats(SINGLE, SEVERAL, difficulty=["easy", "hard"]), "trl-grpo")
    trainer = trainer_of("GRPO", rows, demo_model_dir, tmp_path, num_generations=2, max_completion_length=8)
    trainer.train()
    assert trainer.state.global_step == 1
