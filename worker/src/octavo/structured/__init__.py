"""Output that follows a grammar: what is asked for, checked, compiled, and made into token masks.

Torch-free. The server's process translates a request (``translate``), refuses what cannot be
honoured (``json_schema``, ``regex_size``), has every new grammar tried by a process of its own
under limits (``trial``, ``trial_process``), and finds where a refused schema is at fault
(``schema_fault``). The engine's process compiles in a thread (``compiler``), follows each request's
tokens (``follower``), and fills masks (``masks``). The grammar library (``library``) is imported
when the engine has first been idle for a second, or the first grammar comes.
"""
