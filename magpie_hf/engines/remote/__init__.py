"""Engines that send requests to servers: TGI and OpenAI-compatible endpoints."""
