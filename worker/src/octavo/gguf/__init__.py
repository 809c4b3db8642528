"""GGUF files as containers: what is written in them and where.

Knows the container format, versions 2 and 3, and the sizes of ggml's encodings; knows nothing of
what models, tokenizers or tensors mean, and imports neither torch nor numpy, because the server's
process reads tokenizers from these files too.
"""
