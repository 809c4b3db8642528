"""An answer in JSON that is made whole."""

from __future__ import annotations

import msgspec
from starlette.responses import Response


def json_response(answer: object, status: int = 200) -> Response:
    """``answer`` as msgspec writes it."""
    return Response(msgspec.json.encode(answer), status, media_type="application/json")
