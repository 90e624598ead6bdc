"""The bundled demo models, the grammar they learned from, and the script that trained them.

`model/` is a chat model that synthesizes its own instructions, `reward/` a reward model, `embedder.DemoEmbedder`
vectors from the chat model's states. Wherever a model is named, "demo" means these (`magpie_hf.models`).

To train on more than conversations of today's forms: write a form (`grammar_base.form`), import its module in
`grammar`, and run `python -m magpie_hf.demo.train`.
"""
