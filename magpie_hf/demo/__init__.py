"""The bundled demo models.

`model/` is a chat model that synthesizes its own instructions, `reward/` a reward model, `embedder.DemoEmbedder`
vectors from the chat model's states. Wherever a model is named, "demo" means these (`magpie_hf.models`). They were
trained by `tools/demo` of the repository.
"""
