"""The bundled demo models.

`model/` is a chat model that generates its own instructions, `reward/` a reward model, and `embedder.DemoEmbedder`
computes embeddings with the chat model. Use them with the model name "demo" (`magpie_hf.models`). They were trained with
`tools/demo` of the repository. `rows.jsonl` has conversations that the chat model wrote: the dataset "demo".
"""
