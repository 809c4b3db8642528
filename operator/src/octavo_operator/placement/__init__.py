"""How many GPUs a model needs, and which: arithmetic over a model's shape and cards' memory.

`decision.decide` is the face; `footprint` says what each GPU would hold, `node_gpus` and
`gpu_products` what there is. Pure: no cluster, no clock, no Kubernetes objects but node labels.
"""
