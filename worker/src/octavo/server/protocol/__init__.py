"""What clients send (pydantic, strict) and what they get (msgspec)."""
