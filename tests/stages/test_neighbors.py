"""Near duplicates as a stage: with the demo's embedder, and with a sentence-transformers model of the tests' own."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from datasets import Dataset

import magpie_hf
from magpie_hf.errors import ArgumentError, DatasetError, MagpieError
from magpie_hf.scoring.embedding import EmbeddingStore, embed_texts, text_keys
from magpie_hf.stages import STAGES, stage_class
from magpie_hf.storage.rundir import RunDir
from tests.conftest import REPOSITORY


TEXTS = [
    "Write a short poem about the sea.",
    "Write a short poem about the sea.",
    "How do I bake bread at home?",
    "What is the capital of France?",
    None,
    "   ",
    "What is the capital of Spain?",
    "Write a short poem about the sea.",
]


@pytest.fixture(autouse=True)
def _demo(demo_model_dir):
    """The bundled demo model must be there."""


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A sentence-transformers model, tiny and untrained, saved as any other."""
    from sentence_transformers import SentenceTransformer, models
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("sentence")
    words = sorted({w for text in TEXTS if text for w in text.lower().replace("?", "").replace(".", "").split()})
    vocabulary = {w: n for n, w in enumerate(["[PAD]", "[UNK]", *words])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(place / "bert")
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(place / "bert")
    transformer = models.Transformer(str(place / "bert"))
    SentenceTransformer(modules=[transformer, models.Pooling(32), models.Normalize()]).save(str(place / "model"))
    return place / "model"


def table(texts=TEXTS, offset=0):
    return Dataset.from_dict({"uuid": [f"u{n + offset:02d}" for n in range(len(texts))], "instruction": texts})


def annotate(data, place, **settings):
    return magpie_hf.annotate(data, [{"stage": "neighbors", "model": "demo", **settings}], output=place)


def report(place, name="neighbors"):
    stages = RunDir.read(place).state.stages.values()
    return next(state.report for state in stages if state.name == name)


def test_columns_that_the_releases_have_too_have_their_types():
    """Nested columns differ on purpose: ours hold more."""
    facts = yaml.safe_load((REPOSITORY / "tests" / "releases" / "facts.yaml").read_text("utf-8"))
    wanted = {name: kind for name, kind in facts["columns"]["second_pre_query"].items() if isinstance(kind, str)}
    kinds = [stage_class(name) for name in STAGES if name not in ("rubric", "subset")]
    ours = {name: feature for kind in kinds for name, feature in kind().features().items() if name in wanted}
    assert {name: feature.dtype for name, feature in ours.items()} == wanted


def test_copies_have_distance_zero_one_group_and_one_survivor(tmp_path):
    ds = annotate(table(), tmp_path / "run")
    assert [ds[n]["min_neighbor_distance"] for n in (0, 1, 7)] == [0.0, 0.0, 0.0]
    assert ds["repeat_count"][:2] == [2, 2]
    assert ds["group_id"][:2] == ["u00", "u00"]
    assert ds["min_similar_uuid"][:3] == ["u00", "u00", None]
    assert (ds[4]["min_neighbor_distance"], ds[4]["group_id"], ds[4]["repeat_count"]) == (None, "u04", 0)
    assert ds[2]["group_id"] == "u02"
    facts = report(tmp_path / "run")
    assert (facts["method"], facts["rows_without_text"], facts["duplicate_rows"]) == ("exact", 2, 3)


def test_the_order_of_rows_changes_no_rows_values(tmp_path):
    one = {row["uuid"]: row for row in annotate(table(), tmp_path / "a")}
    two = {row["uuid"]: row for row in annotate(table().select([7, 3, 5, 1, 0, 6, 2, 4]), tmp_path / "b")}
    for uuid, row in one.items():
        assert two[uuid]["group_id"] == row["group_id"]
        assert two[uuid]["repeat_count"] == row["repeat_count"]
        assert two[uuid]["min_neighbor_distance"] == pytest.approx(row["min_neighbor_distance"], abs=1e-3)


def test_embeddings_are_made_once_a_text_and_kept_when_the_set_grows(tmp_path, monkeypatch):
    import magpie_hf.stages.neighbors as module

    asked = []
    real = module.load_embedder

    def counting(*arguments, **options):
        encode = real(*arguments, **options)
        return lambda texts: asked.append(len(texts)) or encode(texts)

    monkeypatch.setattr(module, "load_embedder", counting)
    annotate(table(), tmp_path / "run")
    assert asked == [4]
    annotate(table([*TEXTS, "Tell me a joke."]), tmp_path / "run")
    assert asked == [4, 1]
    annotate(table(), tmp_path / "run")
    assert asked == [4, 1]


def test_a_model_of_sentence_transformers_is_loaded_from_its_directory(sentence_model, tmp_path):
    ds = annotate(table(), tmp_path / "run", model=str(sentence_model), embeddings=True)
    assert ds["repeat_count"][:2] == [2, 2]
    vector = np.array(ds[0]["embedding"], dtype=np.float32)
    assert vector.shape == (32,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-2)
    assert ds[4]["embedding"] is None


def test_rows_within_the_threshold_are_grouped(tmp_path):
    ds = annotate(table(), tmp_path / "run", threshold=4.0)
    groups = {ds[n]["group_id"] for n in (0, 1, 2, 3, 6, 7)}
    assert groups == {"u00"}
    assert ds[0]["repeat_count"] == 5


@pytest.mark.parametrize("texts", [[], ["one"], [None], ["", " "]], ids=["none", "one", "null", "blank"])
def test_small_sets_have_no_neighbours(tmp_path, texts):
    ds = annotate(table(texts) if texts else table(["x"]).select([]), tmp_path / "run")
    assert len(ds) == len(texts)
    assert ds["min_neighbor_distance"][:] == [None] * len(texts)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "fast"}, "exact"),
        ({"threshold": 0}, "threshold"),
        ({"precision": "int8"}, "precision"),
        ({"model": "no/such"}, "no/such"),
        ({"column": "prompt"}, "prompt"),
    ],
)
def test_settings_that_cannot_be_used_are_errors(tmp_path, settings, words):
    with pytest.raises((ArgumentError, MagpieError), match=words):
        annotate(table(), tmp_path / "run", **settings)


def test_a_store_drops_what_a_kill_left_half_written(tmp_path):
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    with EmbeddingStore(tmp_path) as store:
        store.append(text_keys(["a", "b", "c"]), vectors)
    with (tmp_path / "vectors.f16").open("ab") as file:
        file.write(b"torn")
    with (tmp_path / "keys.u64").open("ab") as file:
        file.write(b"12345")
    with EmbeddingStore(tmp_path) as store:
        assert len(store) == 3
        store.append(text_keys(["d"]), vectors[:1])
        store.update_index()
        assert store.find(text_keys(["d", "x", "b"])).tolist() == [3, -1, 1]
        np.testing.assert_array_equal(store.matrix[1], vectors[1])
        embed_texts(store, iter([["a", "e", "e"]]), lambda: lambda texts: np.ones((len(texts), 4), np.float32))
        assert len(store) == 5


@pytest.mark.parametrize(("file", "kept"), [("vectors.f16", 2), ("keys.u64", 2), ("facts.json", 0)])
def test_a_store_drops_blocks_that_were_damaged_and_those_behind_them(tmp_path, caplog, file, kept):
    texts = [["a", "b"], ["c", "d"], ["e"]]
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    with EmbeddingStore(tmp_path) as store:
        for block in texts:
            store.append(text_keys(block), vectors[: len(block)])
    data = bytearray((tmp_path / file).read_bytes())
    data[len(data) // 2] ^= 1
    if file == "facts.json":
        data = data[:-5]
    (tmp_path / file).write_bytes(data)
    with caplog.at_level("WARNING", "magpie_hf"), EmbeddingStore(tmp_path) as store:
        assert len(store) == kept
        embed_texts(store, iter(texts), lambda: lambda asked: np.ones((len(asked), 4), np.float32))
        assert (store.find(text_keys(list("abcde"))) >= 0).all()
        if kept:
            np.testing.assert_array_equal(store.matrix[:2], vectors)
    assert "damaged" in caplog.text
    with EmbeddingStore(tmp_path) as store:
        assert len(store) == 5


def test_new_rows_are_measured_against_what_exists(tmp_path):
    old = table(TEXTS[:4])
    old.to_parquet(str(tmp_path / "old.parquet"))
    new = table(["How do I bake bread at home?", "Name three planets with rings.", None], offset=50)
    stage = {"stage": "novelty", "model": "demo", "against": [str(tmp_path / "old.parquet")]}
    ds = magpie_hf.annotate(new, [stage], output=tmp_path / "run")
    assert (ds[0]["existing_distance"], ds[0]["existing_uuid"]) == (0.0, "u02")
    assert ds[1]["existing_distance"] > 0.05
    assert (ds[2]["existing_distance"], ds[2]["existing_uuid"]) == (None, None)
    assert report(tmp_path / "run", "novelty")["known_rows"] == 1
    kept = magpie_hf.select(ds, "existing_distance is None or existing_distance >= 0.05")
    assert kept["uuid"][:] == ["u51", "u52"]


def test_rows_with_a_benchmarks_prompt_are_found_by_words_and_by_embedding(tmp_path):
    prompts = Dataset.from_dict(
        {
            "prompt": [
                "Write a short poem about the sea.",
                "What is the boiling point of pure water at sea level in degrees of Celsius?",
            ]
        }
    )
    prompts.to_parquet(str(tmp_path / "bench.parquet"))
    texts = [
        "Please: what is the boiling point of pure water at sea level in degrees of Celsius? Thanks!",
        "Write a short poem about the sea.",
        "How do I bake bread at home?",
        None,
    ]
    stage = {
        "stage": "decontamination",
        "model": "demo",
        "benchmarks": [{"path": str(tmp_path / "bench.parquet"), "name": "bench"}],
    }
    ds = magpie_hf.annotate(table(texts), [stage], output=tmp_path / "run")
    assert ds["contaminated"][:] == [True, True, False, False]
    found = ds[1]["contamination"]
    assert (found["benchmark"], found["prompt_index"], found["ngram_share"], found["distance"]) == (
        "bench",
        0,
        1.0,
        0.0,
    )
    facts = report(tmp_path / "run", "decontamination")
    assert facts["contaminated_rows"] == 2
    assert facts["benchmarks"]["bench"] == {"prompts": 2, "rows_hit": 2, "prompts_hit": 2}


def test_a_benchmark_can_be_a_list_of_texts(tmp_path):
    given = {"name": "mine", "prompts": ["How do I bake bread at home?"]}
    stage = {"stage": "decontamination", "model": "demo", "benchmarks": [given]}
    ds = magpie_hf.annotate(table(["How do I bake bread at home?", "Hi there"]), [stage], output=tmp_path / "run")
    assert ds["contaminated"][:] == [True, False]
    assert ds[0]["contamination"]["benchmark"] == "mine"


@pytest.mark.parametrize("given", [{"name": "mine"}, {"prompts": ["a"]}, {"name": "mine", "prompts": [1]}])
def test_a_benchmark_with_neither_a_path_nor_named_texts_is_an_error(given, tmp_path):
    stage = {"stage": "decontamination", "model": "demo", "benchmarks": [given]}
    with pytest.raises(ArgumentError, match=r"neither a path nor prompts|needs a name and a list of texts"):
        magpie_hf.annotate(table(), [stage], output=tmp_path / "run")


def test_a_benchmark_without_prompts_is_an_error(tmp_path):
    Dataset.from_dict({"n": [1]}).to_parquet(str(tmp_path / "bench.parquet"))
    with pytest.raises(DatasetError, match="no column of prompts"):
        magpie_hf.annotate(
            table(),
            [{"stage": "decontamination", "model": "demo", "benchmarks": [str(tmp_path / "bench.parquet")]}],
            output=tmp_path / "run",
        )
