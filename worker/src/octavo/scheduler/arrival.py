"""What may come in at all, and how far it may go: limits that hold whoever else is there.

Knows a request and the configuration; knows nothing of queues or of who runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError, PromptTooLongError
from octavo.request import Request


def check_can_run(request: Request, config: SchedulerConfig) -> None:
    """Raise InvalidRequestError for a prompt that could not run even alone."""
    num_tokens = request.num_prompt_tokens
    if num_tokens == 0:
        raise InvalidRequestError("the prompt has no tokens; give at least one.", "prompt")
    most = config.max_model_len - (not request.is_prompt_only)
    if num_tokens > most:
        raise PromptTooLongError(
            f"the prompt has {num_tokens} tokens, but max_model_len is {config.max_model_len} "
            f"for the prompt and what is generated; shorten the prompt to {most} tokens.",
            param="prompt",
        )
    num_blocks = -(-num_tokens // config.block_size)
    if num_blocks > config.num_blocks:
        raise PromptTooLongError(
            f"the prompt has {num_tokens} tokens and needs {num_blocks} blocks of "
            f"{config.block_size} tokens, but the KV cache has {config.num_blocks}; shorten the "
            f"prompt to {config.num_blocks * config.block_size} tokens.",
            param="prompt",
        )


def check_group_size(requests: Sequence[Request], config: SchedulerConfig) -> None:
    """Raise InvalidRequestError for more choices than may ever wait, all together or of their
    tenant's."""
    _check_fits(
        requests, config.max_num_waiting, f"{config.max_num_waiting} may wait (max_num_waiting)"
    )
    tenant = requests[0].tenant
    if tenant.max_queued is not None:
        limits = f"{tenant.max_queued} waiting (max-queued)"
        if tenant.max_running is not None:
            limits = f"{tenant.max_running} running (max-running) and {limits}"
        most = tenant.max_queued + (tenant.max_running or 0)
        _check_fits(requests, most, f"this API key may have {limits}")


def _check_fits(requests: Sequence[Request], most: int, limits: str) -> None:
    if len(requests) <= most:
        return
    num_prompts = sum(not request.is_follower for request in requests)
    n = len(requests) // num_prompts
    size = f"n is {n}"
    if num_prompts > 1:
        size = f"The request has {num_prompts} prompts" + (f" with n {n}" if n > 1 else "")
    raise InvalidRequestError(
        f"{size}, and {limits}; ask for at most {most} choices in one request.",
        "n" if num_prompts == 1 else "prompt",
    )


def token_limit(request: Request, config: SchedulerConfig) -> int:
    """Prompt and outputs together at which a request ends, whatever it says.

    The last token drawn is never computed, so it needs no place in the cache; and a request
    that had outgrown the whole cache could never be resumed.
    """
    limit = min(config.max_model_len, config.num_blocks * config.block_size + 1)
    if request.params.max_tokens is None:
        return limit
    return min(limit, request.num_prompt_tokens + request.params.max_tokens)
