"""A model's files: finding them, fetching them, reading weights out of them.

Knows the hub, folders, safetensors and GGUF; delivers a configuration in Hugging Face's words and
weights under Hugging Face's names. Knows nothing of how a model computes. Never unpickles and
never runs code out of a model's folder.
"""
