"""LoRA adapters: PEFT's files, checked; and where their weights lie, on the host and the device.

``adapter_config`` understands ``adapter_config.json``, ``adapter_folder`` finds and reads an
adapter's files, ``adapter_weights`` lays them out for a model, ``adapter_store`` keeps the host's
cache and fills the device's slots; ``outcomes`` is what it tells, ``request`` how a user of
:class:`octavo.LLM` names one. How they are applied is :mod:`octavo.kernels.adapters`'s.
"""
