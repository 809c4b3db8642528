"""The engine: text and ids in, updates out; the deciding and the computing wing meet here.

``core`` steps, ``core_process`` gives it a process of its own, ``async_engine`` is its face in
the server's process, ``open_generation`` what waits there for a client, ``carried_errors`` how
errors cross between the two, ``intake`` turns prompts into requests, ``build`` puts an engine
together from a config.
"""
