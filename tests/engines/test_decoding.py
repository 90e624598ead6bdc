from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from magpie_hf.engines.local.decoding import (
    SamplingTable,
    StopTexts,
    _invert_cdf,
    choose_tokens,
    cutoffs,
    penalized,
    uniforms,
)
from magpie_hf.sampling import SamplingParams


def _table(count=1, **params):
    return SamplingTable.of([SamplingParams(**params, seed=i) for i in range(count)])


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 5000)), min_size=1, max_size=40))
def test_a_draw_depends_on_its_seed_and_step_only(pairs):
    seeds, steps = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    together = uniforms(seeds, steps)
    alone = [uniforms(np.array([seed], np.int64), np.array([step], np.int64))[0] for seed, step in pairs]
    assert together.tolist() == alone
    assert together.dtype == np.float32
    assert (together >= 0).all()
    assert (together < 1).all()


@pytest.mark.parametrize("along", ["seeds", "steps"])
def test_draws_are_even_along_neighbouring_seeds_and_along_steps(along):
    numbers, zeros = np.arange(64_000, dtype=np.int64), np.full(64_000, 7, np.int64)
    draws = uniforms(numbers, zeros) if along == "seeds" else uniforms(zeros, numbers)
    counts = np.bincount((draws * 64).astype(int), minlength=64)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 115  # 63 degrees of freedom: the 0.9999 quantile
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02


def test_streams_of_neighbouring_seeds_do_not_overlap():
    steps = np.arange(500, dtype=np.int64)
    streams = np.stack([uniforms(np.full(500, seed, np.int64), steps) for seed in range(20)])
    assert len(np.unique(streams)) > 0.999 * streams.size


def test_sampled_tokens_follow_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, float("-inf")]]).expand(20_000, -1)
    tokens = choose_tokens(logits, _table(20_000, temperature=0.8), np.zeros(20_000, np.int64))
    expected = torch.softmax(logits[0] / 0.8, 0).numpy() * 20_000
    counts = np.bincount(tokens, minlength=5)
    assert counts[4] == 0
    assert ((counts[:4] - expected[:4]) ** 2 / expected[:4]).sum() < 21  # 3 degrees of freedom: the 0.9999 quantile


def _support_of_warpers(logits, top_k, top_p):
    scores = logits.clone()
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores > float("-inf")


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.sampled_from([5, 40, 3000]),
    spread=st.sampled_from([0.3, 2.0, 6.0]),
    top_k=st.sampled_from([None, 1, 3, 50, 2000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
)
def test_top_k_and_top_p_keep_the_tokens_that_transformers_keeps(seed, vocab, spread, top_k, top_p):
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    kept = logits if top_k is None else TopKLogitsWarper(min(top_k, vocab))(None, logits.clone())
    mass = kept.double().softmax(1).sort(descending=True).values.cumsum(1)
    assume(top_p == 1 or float((mass - top_p).abs().min()) > 1e-5)  # rounding decides there
    count = len(logits)
    cut = cutoffs(logits, np.full(count, min(top_k or 0, vocab), np.int64), np.full(count, top_p, np.float32))
    expected = _support_of_warpers(logits, None if top_k is None else min(top_k, vocab), top_p)
    assert torch.equal(logits >= cut[:, None], expected)


def test_tokens_of_equal_logit_at_the_border_stay_together_so_no_sort_order_matters():
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    cut = cutoffs(logits, np.array([2]), np.array([1.0], np.float32))
    assert (logits >= cut[:, None]).tolist() == [[True, True, True, True]]


def test_rows_of_any_parameters_run_together_as_they_would_alone():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 3
    params = [
        SamplingParams(temperature=0, seed=1),
        SamplingParams(temperature=1.3, top_k=5, seed=2),
        SamplingParams(temperature=0.7, top_p=0.8, seed=3),
        SamplingParams(seed=4),
        SamplingParams(temperature=0, top_p=0.5, repetition_penalty=1.5, seed=5),
        SamplingParams(temperature=2, top_k=9, top_p=0.9, repetition_penalty=0.8, seed=6),
    ]
    seen = torch.rand(6, 50, generator=torch.Generator().manual_seed(2)) < 0.3
    steps = np.array([0, 3, 9, 1, 2, 0], np.int64)
    together = choose_tokens(logits, SamplingTable.of(params), steps, seen=seen)
    alone = [
        choose_tokens(logits[i : i + 1], SamplingTable.of([p]), steps[i : i + 1], seen=seen[i : i + 1])[0]
        for i, p in enumerate(params)
    ]
    assert together.tolist() == alone
    assert together[0] == logits[0].argmax()


def test_the_penalty_is_that_of_transformers():
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[2, 5, 5, 17]])
    seen = torch.zeros(1, 30, dtype=torch.bool)
    seen[0, ids[0]] = True
    expected = RepetitionPenaltyLogitsProcessor(1.4)(ids, logits.clone())
    assert torch.equal(penalized(logits, seen, torch.tensor([[1.4]])), expected)


def test_a_draw_just_under_one_gives_the_last_token_that_has_a_probability():
    logits = torch.cat([torch.zeros(1, 1000), torch.full((1, 20), float("-inf"))], dim=1)
    assert _invert_cdf(logits, np.array([1 - 2.0**-24], np.float32)).item() <= 999
    assert _invert_cdf(logits, np.array([0], np.float32)).item() == 0


def test_an_unseeded_row_is_different_each_time():
    seeds = SamplingTable.of([SamplingParams() for _ in range(50)]).seed
    assert len(set(seeds.tolist())) > 45


def _decode(ids):
    return bytes(ids).decode("utf-8", "replace")


@settings(max_examples=200)
@given(
    text=st.text(alphabet="ab\nc é", max_size=40),
    stops=st.lists(st.text(alphabet="ab\nc é", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_text_is_found_at_the_token_that_completes_it(text, stops):
    finder, ids = StopTexts(_decode), list(text.encode())
    hits = [n for n in range(1, len(ids) + 1) if finder.hit(ids[:n], stops)]
    ends = [len(text[: text.find(stop) + len(stop)].encode()) for stop in stops if stop in text]
    assert (hits[0] if hits else None) == (min(ends) if ends else None)
    if hits:
        before, kept = finder.cut(ids[: hits[0]], stops)
        assert not any(stop in before for stop in stops)
        assert before.startswith(_decode(kept))
        assert text.startswith(before)
