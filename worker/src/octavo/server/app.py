"""Puts the HTTP application together: routes inside, errors around them, then keys, then ids."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from octavo.config import ServerConfig
from octavo.engine.interface import Engine
from octavo.errors import OctavoError
from octavo.server.auth import ApiKeyAuth, Keys, admin_only, is_loopback
from octavo.server.boundary import RequestBoundary
from octavo.server.context import ServerContext
from octavo.server.disconnect import ClientGoneError
from octavo.server.errors import ApiError, translate
from octavo.server.keys import AdminRing, KeyRing
from octavo.server.routes import (
    adapters,
    chat,
    completions,
    embeddings,
    health,
    models,
    operations,
    requests,
    responses,
    tokens,
)
from octavo.server.tracing import RequestTracer
from octavo.version import __version__


def create_app(engine: Engine, config: ServerConfig) -> FastAPI:
    """The application in front of ``engine``. It neither starts nor closes the engine.

    ``app.state.context`` is the :class:`octavo.server.context.ServerContext` of its routes.
    """
    keys = KeyRing(config.api_keys, config.admin_keys, config.api_key_files)
    tracer = RequestTracer() if config.exports_traces else None
    context = ServerContext(engine, config, keys, tracer=tracer)
    app = _bare_app(context)
    for module in (chat, completions, responses, embeddings, tokens, models, health):
        app.include_router(module.build_router(context))
    has_metrics = config.admin_port is None or not config.metrics_on_admin_port
    app.include_router(operations.build_router(context, has_metrics=has_metrics))
    if config.admin_port is None:
        _include_admin_routes(app, context, keys, is_open_port=False)
    else:
        moved = (operations, requests, adapters)
        app.state.moved = [route for one in moved for route in one.build_router(context).routes]
    _surround(app, context, keys)
    return app


def create_admin_app(context: ServerContext) -> FastAPI:
    """The application of the admin port, beside the one that made ``context``.

    Keys of clients mean nothing here: it takes an admin key, or none where there is none.
    """
    app = _bare_app(context)
    for module in (health, operations):
        app.include_router(module.build_router(context))
    keys = AdminRing(context.keys, context.config.admin_key_hashes)
    is_open_port = not is_loopback(context.config.admin_host)
    _include_admin_routes(app, context, keys, is_open_port=is_open_port)
    _surround(app, context, keys)
    return app


def _bare_app(context: ServerContext) -> FastAPI:
    app = FastAPI(
        title="Octavo",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.moved = []
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(OctavoError, _answer_our_error)
    app.add_exception_handler(ClientGoneError, _answer_nobody)
    app.add_exception_handler(HTTPException, _answer_http_error)
    return app


def _include_admin_routes(
    app: FastAPI, context: ServerContext, keys: Keys, *, is_open_port: bool
) -> None:
    """What only administrators may do: on their own port if there is one, else beside the rest."""
    check = admin_only(keys, is_open_port=is_open_port)
    for module in (requests, adapters):
        app.include_router(module.build_router(context), dependencies=[Depends(check)])


def _surround(app: FastAPI, context: ServerContext, keys: Keys) -> None:
    app.add_middleware(ApiKeyAuth, keys=keys)
    app.add_middleware(RequestBoundary, context=context)


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


async def _answer_our_error(request: Request, error: Exception) -> Response:
    """What the engine refuses outside of a generation."""
    answer = translate(error)
    if answer is None:
        raise error
    return answer.to_response()


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client has gone; what is said goes nowhere."""
    return Response(status_code=499)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path, headers = request.url.path[:200], dict(error.headers or {})
    if error.status_code == 404:
        message = f"There is no {path!r} here; /openapi.json lists the routes."
        moved = request.app.state.moved
        if any(route.matches(request.scope)[0] is not Match.NONE for route in moved):
            message = f"{path!r} is on this server's admin port (--admin-port), not on this one."
        return ApiError(404, message, code="not_found").to_response()
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow") or "another method"
        message = f"{path!r} does not take {request.method}; use {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers=headers).to_response()
    return ApiError(error.status_code, str(error.detail), headers=headers).to_response()
