"""The rows train as they are: TRL, given a dataset whole, reads the turns under the roles that the model knows."""

from __future__ import annotations

import pytest
from datasets import load_dataset

import magpie_hf


STAGES = [
    "instructions",
    "responses",
    {"stage": "preference_responses", "num_samples": 3, "sampling": {"temperature": 1.5, "max_tokens": 48}},
    {"stage": "preference", "model": "demo"},
    {"stage": "select", "where": "reward_margin > 0"},  # as the recipes of preference sets do
]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Give the Parquet dataset of a small run on the demo model, loaded as a user of the Hub loads it."""
    place = tmp_path_factory.mktemp("run")
    magpie_hf.run({"model": "demo", "num_rows": 24, "sampling": {"max_tokens": 64}, "stages": STAGES}, output=place)
    return load_dataset("parquet", data_files=str(place / "data" / "*.parquet"), split="train")


def test_no_column_stands_in_for_messages(released):
    """TRL takes `conversations` for the messages, with roles that no chat template knows; others take `prompt`."""
    assert not {"conversations", "conversation", "prompt", "completion", "text"} & set(released.column_names)
    for row in released:
        turns = [turn for name in ("messages", "chosen", "rejected") for turn in row[name] or []]
        assert {turn["role"] for turn in turns} <= {"user", "assistant"}
        assert {key for turn in turns for key in turn} == {"role", "content"}


def train(kind, rows, place, model, **options):
    """Train for two steps and return the trainer."""
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(place), max_steps=2, logging_steps=1, per_device_train_batch_size=4, report_to=[],
        save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(model),
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=rows,
        args=config,
        **options,
    )
    trainer.train()
    return trainer


def test_a_model_trained_on_a_whole_dataset_by_trl_sees_its_own_template(released, demo_model_dir, tmp_path):
    pytest.importorskip("trl")
    from transformers import AutoTokenizer

    trainer = train("SFT", released, tmp_path, str(demo_model_dir))
    tokenizer = AutoTokenizer.from_pretrained(str(demo_model_dir))
    text = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert text == tokenizer.apply_chat_template(released[0]["messages"], tokenize=False)
    # Its own answers surprise the model little; the same under other roles cost it nine times as much.
    assert trainer.state.log_history[0]["loss"] < 1.0


def test_preferences_are_read_by_trl_from_chosen_and_rejected(released, demo_model_dir, tmp_path):
    pytest.importorskip("trl")
    from transformers import AutoTokenizer

    trainer = train("DPO", released, tmp_path, str(demo_model_dir))
    tokenizer = AutoTokenizer.from_pretrained(str(demo_model_dir))
    row = trainer.train_dataset[0]
    for side in ("chosen", "rejected"):
        whole = tokenizer.apply_chat_template(released[0][side], tokenize=False)
        assert tokenizer.decode(row["prompt_ids"] + row[f"{side}_ids"]) == whole
