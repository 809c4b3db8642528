"""The computing wing: turns a plan into tensors, runs the model, draws tokens.

``rows`` holds what the device remembers of every running request, ``batch_tensors`` builds a
step's inputs from it, ``kv_tensors`` is the cache's memory, ``memory`` decides its size
within what ``cgroup`` says a container may use,
``model_runner`` carries out a step.
"""
