"""What an adapter may be called, so that its name means one thing wherever names are listed.

Knows that vLLM's metric ``vllm:lora_requests_info`` joins names with commas, and that who reads it
(gateways that route by adapter) splits there and trims. Torch-free.
"""

from __future__ import annotations

from octavo.errors import InvalidRequestError


def check_adapter_name(name: str) -> None:
    """Raise InvalidRequestError for a name that would read as others in a list of names."""
    if name and "," not in name and name == name.strip():
        return
    raise InvalidRequestError(
        f"The adapter's name is {name!r:.200}; metrics list names between commas, so a name is not "
        "empty, holds no comma and neither begins nor ends with a space. Choose another.",
        "lora_name",
    )
