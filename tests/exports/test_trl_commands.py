"""`trl sft` and `trl dpo` run on run directories and on exports, with the configuration that `export` writes."""

from __future__ import annotations

import json

import pytest

import magpie_hf
from tests.end_to_end.harness import here


pytest.importorskip("trl")
STAGES = [
    "instructions",
    "responses",
    {"stage": "preference_responses", "num_samples": 3, "sampling": {"temperature": 1.5, "max_tokens": 48}},
    {"stage": "preference", "model": "demo"},
    {"stage": "select", "where": "reward_margin > 0"},
]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    magpie_hf.run({"model": "demo", "num_rows": 12, "sampling": {"max_tokens": 64}, "stages": STAGES}, output=place)
    return place


def train(command, model, place, *arguments):
    """Run a command of TRL for two steps, in this process; return the losses and the arguments that it parsed."""
    from trl.scripts import dpo, sft

    script = {"sft": sft, "dpo": dpo}[command]
    given = [
        *arguments, "--model_name_or_path", model, "--output_dir", place, "--max_steps", 2, "--logging_steps", 1,
        "--gradient_accumulation_steps", 1, "--use_cpu", "--bf16", "false", "--report_to", "none",
    ]  # fmt: skip
    parsed = script.make_parser().parse_args_and_config([str(value) for value in given])
    script.main(*parsed)
    log = json.loads((place / "checkpoint-2" / "trainer_state.json").read_text("utf-8"))["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry], parsed[1]


def test_a_run_directory_trains_with_no_further_option(run_directory, demo_model_dir, tmp_path):
    losses, _ = train("sft", demo_model_dir, tmp_path / "sft", "--dataset_name", run_directory)
    assert max(losses) < 1.0
    losses, _ = train("dpo", demo_model_dir, tmp_path / "dpo", "--dataset_name", run_directory)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: the model and its reference are equal at the start


def test_the_sft_configuration_has_the_values_of_the_paper(run_directory, demo_model_dir, tmp_path):
    from trl.chat_template_utils import llama3_training_chat_template

    template = tmp_path / "template.jinja"
    template.write_text(llama3_training_chat_template, "utf-8")
    shown = here("export", run_directory, "trl-sft", "--output", tmp_path / "made")
    assert f"trl sft --config {tmp_path / 'made' / 'trl-sft.yaml'}" in shown
    config = ("--config", tmp_path / "made" / "trl-sft.yaml", "--chat_template_path", template)
    losses, arguments = train("sft", demo_model_dir, tmp_path / "sft", *config)
    assert max(losses) < 1.0
    found = (arguments.learning_rate, arguments.num_train_epochs, arguments.warmup_steps, arguments.max_length)
    assert found == (2e-5, 2, 100, 8192)
    assert arguments.assistant_only_loss
    assert arguments.packing


def test_loss_on_the_last_response_needs_no_template_for_training(run_directory, demo_model_dir, tmp_path):
    here("export", run_directory, "trl-prompt-completion", "--output", tmp_path / "made")
    config = ("--config", tmp_path / "made" / "trl-prompt-completion.yaml")
    losses, arguments = train("sft", demo_model_dir, tmp_path / "sft", *config)
    assert max(losses) < 1.0
    assert arguments.completion_only_loss


def test_the_dpo_configuration_has_the_values_of_the_paper(run_directory, demo_model_dir, tmp_path):
    here("export", run_directory, "trl-dpo", "--output", tmp_path / "made")
    losses, arguments = train("dpo", demo_model_dir, tmp_path / "dpo", "--config", tmp_path / "made" / "trl-dpo.yaml")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    found = (arguments.learning_rate, arguments.num_train_epochs, arguments.warmup_steps, arguments.beta)
    assert found == (5e-7, 1, 0.1, 0.01)
    assert arguments.max_length == 2048
