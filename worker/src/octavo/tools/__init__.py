"""What a model's text means: thoughts, an answer, calls of tools.

One incremental mechanism (``message``): text in, pieces of a message out, the same pieces however
the text is cut. Each way of writing calls is a file of its own (``hermes``, ``llama_json``,
``mistral``, ``pythonic``) that knows its marks, how to read them, and the grammar that makes a
model write them; ``formats`` names them and recognises a model's. Knows nothing of HTTP, and
nothing of tokens.
"""
