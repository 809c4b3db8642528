"""Which block of KV memory belongs to whom: numbers only, no tensors and no torch."""
