"""Text to token ids and back: tokenizers, chat templates, streaming detokenisation.

Knows tokenizer files, be they Hugging Face's or inside a GGUF; knows nothing of weights or
requests. Imports no torch, because the server's process has none.
"""
