"""Export rows in the formats that trainers read: TRL, axolotl, LLaMA-Factory, ShareGPT and chat JSONL."""
