"""The Hugging Face Hub: the schema of the releases, dataset cards, publishing, jobs and endpoints."""
