"""Run the converters of axolotl and LLaMA-Factory on exports, from their unpacked wheels, without installing them.

`python -m tests.exports.converters WHEELS JOBS` reads a JSON list of jobs (trainer, directory of an export, tokenizer) and
prints what each trainer makes of the rows. Packages that the converters import but do not need here are replaced by stubs.
It runs in a process of its own, because of these stubs.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path


CUTOFF = 4096


def stub(name, **content):
    """Add a module without content of its own."""
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


def package(name, directory):
    """Add a package whose modules can be imported, without running its `__init__`."""
    stub(name).__path__ = [str(directory)]


class Named(dict):
    """A dict whose keys can be read as attributes."""

    def __getattr__(self, name):
        return self[name]


class Colors:
    """Every color of the terminal is the empty text."""

    def __getattr__(self, name):
        return ""


def tokenizer_of(job):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    if job.get("template"):
        tokenizer.chat_template = job["template"]
    return tokenizer


def rows_of(path):
    from datasets import load_dataset

    return load_dataset("json", data_files=str(path), split="train")


def axolotl(job):
    """Return what axolotl reads with the YAML of the export: token ids and labels, or texts of a preference pair."""
    import yaml

    config_file = next(Path(job["place"]).glob("axolotl-*.yaml"))
    from axolotl.utils.dict import DictDefault

    config = DictDefault(yaml.safe_load(config_file.read_text("utf-8")))
    source = config["datasets"][0] = DictDefault(config["datasets"][0])
    tokenizer, rows = tokenizer_of(job), rows_of(source["path"])
    if config["rl"]:
        from axolotl.prompt_strategies.dpo import load

        convert, _ = load(source["type"], config, dataset_idx=0)
        return [convert(row, tokenizer=tokenizer) for row in rows]
    from axolotl.prompt_strategies import load as load_sft

    strategy = load_sft(source["type"], tokenizer, config, source)
    read = [strategy.tokenize_prompt(row) for row in rows]
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in read]


def llamafactory(job):
    """Return what LLaMA-Factory reads with the dataset_info.json of the export."""
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor.pairwise import PairwiseDatasetProcessor
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.data.template import TEMPLATES

    place = Path(job["place"])
    attributes = get_dataset_list([place.name], str(place))[0]
    convert = get_dataset_converter(attributes.formatting, attributes, Named(media_dir=str(place)))
    tokenizer = tokenizer_of(job)
    aligned = [convert(row) for row in rows_of(place / attributes.dataset_name)]
    settings = Named(cutoff_len=CUTOFF, mask_history=False, train_on_prompt=False)
    kind = PairwiseDatasetProcessor if attributes.ranking else SupervisedDatasetProcessor
    processor = kind(TEMPLATES["llama3"], tokenizer, None, settings)
    read = processor.preprocess_dataset({name: [row[name] for row in aligned] for name in aligned[0]})
    names = [name for name in read if name.endswith(("input_ids", "labels"))]
    return [{name: read[name][at] for name in names} for at in range(len(read[names[0]]))]


def main(wheels, jobs):
    sys.path.insert(0, wheels)
    import datasets  # noqa: F401 (before the stubs: both look for optional packages)
    import transformers.models.mllama.processing_mllama  # noqa: F401

    for name in ("torchaudio", "omegaconf"):
        stub(name)
    stub("peft")
    stub("peft.utils", SAFETENSORS_WEIGHTS_NAME="", WEIGHTS_NAME="")
    stub("addict", Dict=Named)
    stub("colorama", Fore=Colors())
    package("llamafactory.data", Path(wheels) / "llamafactory" / "data")
    found = [{"axolotl": axolotl, "llamafactory": llamafactory}[job["trainer"]](job) for job in jobs]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text("utf-8")))
