"""From logits to token ids: penalties, biases, masks, the draw, log probabilities.

Knows rows and what their requests asked for; knows nothing of schedules or text. The draw
itself is a kernel (:meth:`octavo.kernels.interface.Kernels.sample`).
"""
