from __future__ import annotations

from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from magpie_hf.columns import Column
from magpie_hf.storage.journal import halves_key
from magpie_hf.storage.keys import content_fingerprint, row_keys


rows = st.lists(st.sampled_from(["a", "b", "", "a\ud800".encode("utf-8", "replace").decode(), "ü"]), max_size=20)


def keys(dataset, reads=("instruction",)):
    return [halves_key(key) for key in row_keys(dataset, reads)]


def of(texts, **more):
    return Dataset.from_dict({"instruction": list(texts), **more})


@settings(max_examples=40, deadline=None)
@given(rows)
def test_all_rows_have_different_keys_though_they_are_equal(texts):
    assert len(set(keys(of(texts)))) == len(texts)


@settings(max_examples=40, deadline=None)
@given(rows, rows)
def test_added_rows_change_no_earlier_key(texts, more):
    assert keys(of(texts + more))[: len(texts)] == keys(of(texts))


def test_a_key_depends_on_the_columns_read_and_on_no_other():
    plain = keys(of(["x", "y"]))
    assert keys(of(["x", "y"], note=[1, 2])) == plain
    assert keys(of(["x", "z"]))[0] == plain[0]
    assert keys(of(["x", "z"]))[1] != plain[1]
    assert keys(of(["x", "y"], response=["r", "s"]), ("instruction", "response")) != plain


def test_the_uuid_of_a_row_is_part_of_its_key():
    assert keys(of(["x"], uuid=["1"])) != keys(of(["x"], uuid=["2"]))


def test_keys_are_the_same_in_memory_on_disk_and_through_indices(tmp_path):
    dataset = of(["x", "y", "x"])
    dataset.save_to_disk(tmp_path / "d")
    assert keys(Dataset.load_from_disk(tmp_path / "d")) == keys(dataset)
    assert keys(of(["-", "x", "y", "x"]).select([1, 2, 3])) == keys(dataset)
    assert keys(dataset.with_format("numpy")) == keys(dataset)


def test_a_foreign_dataset_is_known_by_content_and_not_by_path(tmp_path):
    dataset = of(["x", "y"], score=[1.5, None])
    dataset.save_to_disk(tmp_path / "one")
    dataset.save_to_disk(tmp_path / "two")
    found = {content_fingerprint(Dataset.load_from_disk(tmp_path / name)) for name in ("one", "two")}
    assert found == {content_fingerprint(dataset)}


def test_another_value_order_or_column_makes_another_fingerprint():
    given = [of(["x", "y"]), of(["y", "x"]), of(["x", "z"]), of(["x", "y"], more=[0, 0])]
    given.append(of(["x", "y"]).rename_column("instruction", "text"))
    assert len({content_fingerprint(dataset) for dataset in given}) == 5
    assert content_fingerprint(of(["x"], b=[1]).select_columns(["b", "instruction"])) == content_fingerprint(
        of(["x"], b=[1])
    )


def test_other_names_or_another_order_of_labels_make_another_fingerprint():
    def fingerprint(tone, label):
        features = Features({"tone": tone, "label": label, "tags": [Value("string")]})
        return content_fingerprint(
            Dataset.from_dict({"tone": ["a"], "label": [0], "tags": [["x"]]}, features=features)
        )

    tones = [Value("string"), *(Column("tone", "label", labels=order).feature() for order in (("a", "b"), ("b", "a")))]
    labels = [Value("int64"), ClassLabel(names=["no", "yes"]), ClassLabel(names=["yes", "no"])]
    assert len({fingerprint(tone, label) for tone in tones for label in labels}) == 9
    assert fingerprint(tones[1], labels[1]) == fingerprint(tones[1], labels[1])


def test_images_are_hashed_as_they_are_stored_and_not_decoded():
    def pictured(data):
        stored = Dataset.from_dict({"instruction": ["x"], "image": [{"bytes": data, "path": None}]})
        return stored.cast(Features({"instruction": Value("string"), "image": Image()}))

    assert content_fingerprint(pictured(b"no picture")) == content_fingerprint(pictured(b"no picture"))
    assert content_fingerprint(pictured(b"no picture")) != content_fingerprint(pictured(b"another"))
