import json

import pytest
import torch

from tools.demo.measure import write_cards
from tools.demo.optimizer import orthogonalized, rate_at
from tools.demo.reward import CORRUPTIONS, rewards, train_reward_model
from tools.demo.tokenizer import CONTEXT, train_tokenizer
from tools.demo.train import batches, chat_config, save_chat_model, train_chat_model


@pytest.fixture(scope="module")
def small_tokenizer():
    return train_tokenizer(1, num_conversations=1500)


@pytest.fixture(scope="module")
def trained(small_tokenizer):
    return train_chat_model(small_tokenizer, steps=3)


def test_batches_hold_whole_conversations_padded_on_the_right(small_tokenizer):
    config = chat_config(small_tokenizer)
    for ids in batches(small_tokenizer, 1, 5, batch_tokens=512):
        assert ids.shape[1] <= CONTEXT
        assert (ids[:, 0] == config.bos_token_id).all()
        padding = ids == config.pad_token_id
        assert (padding.int().diff(dim=1) >= 0).all()
        assert (ids[~padding] != config.pad_token_id).all()


def test_equal_seeds_train_equal_weights(small_tokenizer, trained):
    again = train_chat_model(small_tokenizer, steps=3)
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_the_saved_model_and_tokenizer_load_with_transformers(small_tokenizer, trained, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_chat_model(trained, small_tokenizer, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (
        tokenizer("12 cats", add_special_tokens=False)["input_ids"]
        == small_tokenizer.encode("12 cats", add_special_tokens=False).ids
    )
    assert torch.equal(model.model.embed_tokens.weight, trained.model.embed_tokens.weight)


def test_reward_training_raises_the_score_of_the_good_answer(small_tokenizer, trained):
    model = train_reward_model(trained, small_tokenizer, seed=1, steps=2)
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    values = rewards(model, small_tokenizer, [conversation, conversation * 3])
    assert values.shape == (2,)
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_corruptions_change_most_answers(name):
    import random
    from itertools import islice

    from tools.demo.grammar import conversations

    rng = random.Random(0)
    drawn = list(islice(conversations(2, long_share=0), 100))
    answers = [conversation.exchanges[-1].answer for conversation in drawn]
    corrupted = [CORRUPTIONS[name](rng, answer, one) for answer, one in zip(answers, drawn, strict=True)]
    assert sum(before != after for before, after in zip(answers, corrupted, strict=True)) > 80


def test_orthogonalized_steps_have_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape, generator=generator)))
        assert values.min() > 0.3
        assert values.max() < 1.5


def test_rate_rises_then_falls():
    rates = [rate_at(step, 1000) for step in range(1000)]
    assert max(rates) == rates[99] == 1.0
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] < 0.03


def test_cards_take_new_figures_and_keep_the_old_ones(tmp_path):
    (tmp_path / "model").mkdir()
    write_cards(tmp_path, {"distinct at 1.0": 0.91, "training: minutes": 12.34, "reward accuracy, all": 0.5})
    write_cards(tmp_path, {"distinct at 1.0": 0.92})
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| distinct at 1.0 | 92.0% |" in card
    assert "| training: minutes | 12.3 |" in card
    assert "reward accuracy" not in card
    assert card.count("|---|---|") == 1
    assert not (tmp_path / "reward").exists()
