"""The HTTP server: OpenAI's API in front of an engine.

``app`` builds it, ``lifecycle`` runs it, ``protocol`` says what may be asked, ``routes`` answer.
Nothing here imports torch: the server's process starts in a moment and stays small.
"""
