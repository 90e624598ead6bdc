import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from magpie_hf.demo.embedder import DemoEmbedder
from magpie_hf.errors import ModelError
from magpie_hf.models import demo_model
from tools.demo.grammar import conversations
from tools.demo.measure import PRE_QUERY, generate, is_well_formed, known_words, response_prompt
from tools.demo.reward import accuracy, is_held_out, pairs


MATH_WORDS = re.compile(r"\d|how many|sum|area|perimeter|equation", re.IGNORECASE)


@pytest.fixture(scope="module")
def instructions(model, tokenizer):
    return generate(model, tokenizer, [PRE_QUERY] * 64, temperature=1.0, max_tokens=150, seed=1)


def with_system(system):
    return (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        + PRE_QUERY.removeprefix("<|begin_of_text|>")
    )


def test_weights_of_both_models_fit_in_twelve_megabytes():
    files = [*Path(demo_model().source).glob("*"), *Path(demo_model("reward").source).glob("*")]
    assert sum(file.stat().st_size for file in files) <= 12_000_000


def test_the_pre_query_prompt_alone_generates_instructions_that_end(instructions):
    assert sum(ended for _, ended in instructions) >= 0.8 * 64


def test_sampled_instructions_are_well_formed_and_distinct(instructions):
    words = known_words(count=10_000)
    assert sum(is_well_formed(text, ended, words) for text, ended in instructions) >= 0.8 * 64
    assert len({text for text, _ in instructions}) >= 0.8 * 64


def test_greedy_responses_end_and_are_on_topic(model, tokenizer):
    exchanges = [conversation.exchanges[0] for conversation in islice(conversations(21, long_share=0), 48)]
    answers = generate(model, tokenizer, [response_prompt(exchange.instruction) for exchange in exchanges])
    assert sum(ended for _, ended in answers) >= 46
    words = [set(re.findall(r"\w+", exchange.answer.lower())) for exchange in exchanges]
    shared = [
        len(known & set(re.findall(r"\w+", answer.lower()))) / len(known)
        for known, (answer, _) in zip(words, answers, strict=True)
    ]
    assert np.mean(shared) > 0.7


@pytest.mark.parametrize(
    ("system", "pattern"),
    [
        ("You are an AI assistant designed to provide helpful guidance on solving math problems.", MATH_WORDS),
        (
            "You are a helpful assistant for coding questions.",
            r"code|Python|function|SQL|Bash|HTML|CSS|JavaScript|Git|\w+\(",
        ),
        (
            "Users will ask you to translate text between various languages.",
            r"Spanish|German|French|mean|[Tt]ranslate",
        ),
        ("Eres un asistente útil. Responde siempre en español.", r"[¿áéíóúñ]|Escribe|Calcula|Dame|Nombra"),
    ],
    ids=["math", "code", "translation", "Spanish"],
)
def test_system_prompt_steers_what_the_model_asks(model, tokenizer, system, pattern):
    made = generate(model, tokenizer, [with_system(system)] * 64, temperature=1.0, max_tokens=120, seed=2)
    assert sum(bool(re.search(pattern, text)) for text, _ in made) >= 0.6 * 64


@pytest.mark.xfail(reason="the bundled weights copy numbers from the prompt poorly", strict=False)
def test_answers_to_simple_sums_are_mostly_right(model, tokenizer):
    sums = [(first, second) for first in range(11, 51, 8) for second in range(12, 48, 9)]
    answers = generate(model, tokenizer, [response_prompt(f"What is {first} + {second}?") for first, second in sums])
    right = [f"= {first + second}." in answer for (first, second), (answer, _) in zip(sums, answers, strict=True)]
    assert np.mean(right) >= 0.6


@pytest.mark.xfail(reason="the bundled weights copy names from earlier turns poorly", strict=False)
def test_follow_up_refers_back(model, tokenizer):
    messages = [
        {"role": "user", "content": "What is the capital of Japan?"},
        {"role": "assistant", "content": "The capital of Japan is Tokyo."},
        {"role": "user", "content": "Which currency do they use there?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "yen" in generate(model, tokenizer, [prompt])[0][0]


def after_conversation(tokenizer, limit):
    """Return the prompt for the next user message after a conversation of about `limit` tokens."""
    messages, text = [], ""
    for conversation in islice(conversations(5, long_share=0), 60):
        exchange = conversation.exchanges[0]
        messages.append({"role": "user", "content": exchange.instruction})
        messages.append({"role": "assistant", "content": exchange.answer})
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) > limit:
            break
    return text + "<|start_header_id|>user<|end_header_id|>\n\n"


def test_instructions_after_a_long_conversation_still_end(model, tokenizer):
    words = known_words(count=10_000)
    shares = {}
    for limit in (400, 1700):
        made = generate(
            model, tokenizer, [after_conversation(tokenizer, limit)] * 32, temperature=1.0, max_tokens=120, seed=3
        )
        assert sum(ended for _, ended in made) >= 30
        shares[limit] = sum(is_well_formed(*pair, words) for pair in made) / len(made)
    assert shares[400] >= 0.7
    assert shares[1700] >= 0.15  # far from the start the model confuses words, as its card says


@pytest.fixture(scope="module")
def reward():
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(demo_model("reward").source).eval()


def test_reward_model_prefers_good_answers_on_instructions_it_never_saw(reward):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(demo_model("reward").source) / "tokenizer.json"))
    assert accuracy(reward, tokenizer, seed=17, count=384)["all"] > 0.8


def test_held_out_pairs_and_trained_pairs_share_no_instruction():
    for held_out in (True, False):
        for pair in islice(pairs(1, held_out=held_out), 50):
            assert is_held_out(pair.good[-2]["content"]) is held_out
            assert pair.good[:-1] == pair.bad[:-1]
            assert pair.good[-1] != pair.bad[-1]


def test_reward_of_a_conversation_does_not_depend_on_its_padding(reward):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model("reward").source)
    texts = [tokenizer.apply_chat_template(pair.good, tokenize=False) for pair in islice(pairs(2, held_out=True), 6)]
    batch = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
    with torch.inference_mode():
        together = reward(**batch).logits[:, 0]
        alone = torch.cat(
            [reward(**tokenizer([text], add_special_tokens=False, return_tensors="pt")).logits[:, 0] for text in texts]
        )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


GROUPS = [
    ["How do I get started with gardening?", "What are the first steps in gardening?"],
    ["What is gravity?", "Explain gravity to a child."],
    ["What is 31 + 27?", "Calculate 31 + 28."],
    ["Write a Python function that reverses a string.", "How do I write a function in Python that reverses a string?"],
    ["What is the capital of Japan?", "Which city is the capital of Japan?"],
    ['How do you say "Good night" in German?', 'Translate "Good night" into German.'],
]


def test_embedder_gives_unit_vectors_with_paraphrases_nearest():
    embedder = DemoEmbedder()
    texts = [text for group in GROUPS for text in group]
    vectors = embedder.encode(texts)
    assert vectors.shape == (len(texts), embedder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    similarity = vectors @ vectors.T - 2 * np.eye(len(texts), dtype=np.float32)
    nearest = similarity.argmax(axis=1)
    assert [int(index) // 2 for index in nearest] == [index // 2 for index in range(len(texts))]


def test_embedder_takes_empty_and_over_long_texts_and_no_texts():
    embedder = DemoEmbedder()
    vectors = embedder.encode(["", "word " * 5000, "Hi"], batch_size=2)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert embedder.encode([]).shape == (0, embedder.dim)


def test_embedding_of_a_text_does_not_depend_on_its_batch():
    embedder = DemoEmbedder()
    texts = ["What is gravity?", "Write a short poem about the sea.", "List five fruits.", "7 + 5"]
    np.testing.assert_allclose(embedder.encode(texts), embedder.encode(texts, batch_size=1), atol=1e-5)


def test_embedder_without_its_statistics_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"embedder\.json"):
        DemoEmbedder(tmp_path).encode(["Hi"])
