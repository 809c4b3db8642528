"""The parser of ``octavo`` and its subcommands, and what is said of flags that it lacks.

The flags of ``serve`` are in :mod:`octavo.cli.serve_flags`.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

from octavo.cli.serve_flags import MODEL_HELP, add_serve_flags, add_source_flags
from octavo.cli.values import dtype, json_object, some, temperature
from octavo.cli.vllm_flags import refusal
from octavo.config import DTYPES
from octavo.version import __version__

DEFAULT_URL = "http://127.0.0.1:8000"
_Commands = argparse._SubParsersAction
_SERVE_EXAMPLES = """\
examples:
  octavo serve demo://smollm2-135m-instruct --served-model-name smollm2
  octavo serve Qwen/Qwen3-8B --max-model-len 32K --gpu-memory-utilization 0.85
  octavo serve ./model.gguf --device cpu --kv-cache-memory-bytes 2GiB --port 9000

then:
  curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 60}'

Numbers may be written 4096, 4k (4,000) or 4K (4,096). Flags have vLLM's names where they mean
the same; a flag of vLLM that is not supported is refused by name.
"""


_BATCH_EXAMPLES = """\
example:
  octavo run-batch Qwen/Qwen3-8B -i requests.jsonl -o answers.jsonl

a line of requests.jsonl, with a custom_id of its own (url: /v1/chat/completions, /v1/completions,
/v1/embeddings or /v1/responses; body: what a server takes there):
  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
   "body": {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 60}}

The exit status is 1 where some lines failed; what was interrupted goes on with --resume.
"""

_INSPECT_EXAMPLES = """\
examples:
  octavo inspect Qwen/Qwen3-8B
  octavo inspect meta-llama/Llama-3.1-70B-Instruct --max-model-len 32K
  octavo inspect ./model --json

What a GPU must hold is the weights, the KV cache of at least one request of --max-model-len
tokens, and a few GiB to work in (docs/inference-service.md, Placement). Split over N GPUs, each
holds an Nth of it; N must divide the heads.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the ``octavo`` command, with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="octavo",
        description="Serve large language models behind an OpenAI-compatible API.",
        epilog="'octavo COMMAND --help' tells a command's flags.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Load a model and serve it over HTTP until Ctrl-C or SIGTERM, which drain.",
        epilog=_SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_serve_flags(serve)
    _add_chat(commands)
    _add_run_batch(commands)
    _add_fetch(commands)
    _add_inspect(commands)
    _add_warm_kernels(commands)
    commands.add_parser("version", help="print the version", allow_abbrev=False)
    return parser


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse; a flag that is unknown, or vLLM's and unsupported, ends with a sentence on it."""
    given = sys.argv[1:] if arguments is None else arguments
    _check_command(parser, given[0] if given else "")
    parsed, rest = parser.parse_known_args(given)
    if rest:
        flags = [word for word in rest if word.startswith("-")]
        if flags:
            remedy = f"'octavo {parsed.command} --help' lists all"
            parser.error(f"{_unknown(flags[0], flags_of(parser, parsed.command))} ({remedy})")
        parser.error(f"unexpected: {' '.join(rest)}")
    return parsed


def _check_command(parser: argparse.ArgumentParser, first: str) -> None:
    """End with a sentence on what stands where the command should."""
    names = _commands_of(parser)
    if first.startswith("-") and first not in parser._option_string_actions:
        parser.error(f"{first} stands before the command; write 'octavo COMMAND {first}'.")
    if first and not first.startswith("-") and first not in names:
        close = difflib.get_close_matches(first, names, n=1, cutoff=0.7)
        remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}."
        parser.error(f"unknown command {first}; {remedy}")


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in parser._actions if isinstance(action, _Commands))
    return dict(commands.choices)


def flags_of(parser: argparse.ArgumentParser, command: str) -> set[str]:
    """All flags of a command."""
    actions = _commands_of(parser)[command]._actions
    return {name for each in actions for name in each.option_strings}


def _unknown(flag: str, known: set[str]) -> str:
    reason = refusal(flag)
    if reason is not None:
        return reason
    name = flag.partition("=")[0]
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"unknown flag {name}" + (f"; did you mean {close[0]}?" if close else "")


def _add_chat(commands: _Commands[argparse.ArgumentParser]) -> None:
    chat = commands.add_parser(
        "chat",
        help="talk to a running server",
        description="Talk to a model behind any OpenAI-compatible server. /help lists commands.",
        allow_abbrev=False,
    )
    chat.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    chat.add_argument("--model", help="the model's name there (default: its first)")
    chat.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    chat.add_argument(
        "--api-key", metavar="KEY", help="bearer token (default: $OCTAVO_API_KEY, if set)"
    )
    chat.add_argument(
        "--max-tokens", type=some, metavar="TOKENS", help="longest answer (default: no limit)"
    )
    chat.add_argument(
        "--temperature",
        type=temperature,
        metavar="NUMBER",
        help="0: the likeliest words (default: the model's)",
    )


def _add_run_batch(commands: _Commands[argparse.ArgumentParser]) -> None:
    batch = commands.add_parser(
        "run-batch",
        help="answer a file of requests, without a server",
        description="Answer each line of an OpenAI batch file as a server would, and write the "
        "answers to another, in the order in which they come. Takes the flags of serve, too; "
        "those of HTTP do nothing.",
        epilog=_BATCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    batch.add_argument(
        *("-i", "--input-file"), required=True, metavar="FILE", help="the requests, one a line"
    )
    batch.add_argument(
        *("-o", "--output-file"), required=True, metavar="FILE", help="where answers are written"
    )
    batch.add_argument(
        "--resume",
        action="store_true",
        help="go on with an output file that is there: answer the lines it has no answer to",
    )
    add_serve_flags(batch)


def _add_fetch(commands: _Commands[argparse.ArgumentParser]) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="download a model and say where it is",
        description="Download a model, so that serving it later needs no network.",
        allow_abbrev=False,
    )
    fetch.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_source_flags(fetch)


def _add_inspect(commands: _Commands[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="say what a model is and what it takes of a GPU",
        description="Say how large a model is: layers, heads, weights, KV cache. Its weights are "
        "not fetched, and no GPU is needed.",
        epilog=_INSPECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    inspect.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_source_flags(inspect)
    inspect.add_argument(
        "--dtype",
        type=dtype,
        choices=DTYPES,
        default="auto",
        help="number format of weights and cache; auto: the checkpoint's (default: auto)",
    )
    inspect.add_argument(
        "--hf-overrides",
        type=json_object,
        default={},
        metavar="JSON",
        help="values that replace those in config.json",
    )
    inspect.add_argument(
        "--max-model-len",
        type=some,
        metavar="TOKENS",
        help="length of the request that the table counts with (default: the model's longest)",
    )
    inspect.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    inspect.add_argument("--output", metavar="FILE", help="write there instead of printing")


def _add_warm_kernels(commands: _Commands[argparse.ArgumentParser]) -> None:
    warm = commands.add_parser(
        "warm-kernels",
        help="compile a model's GPU kernels ahead, with or without a GPU",
        description="Compile the GPU kernels that a model will run, into --kernel-cache-dir: in "
        "an image or a volume, so that a server on a fresh machine need not. Takes the flags of "
        "serve; of the model only the configuration is fetched.",
        allow_abbrev=False,
    )
    add_serve_flags(warm)
    warm.add_argument(
        "--compute-capability",
        default="9.0",
        metavar="X.Y",
        help="the card's: 9.0 for an H100 or H200, 8.9 for an L4, 8.0 for an A100 "
        "(default: %(default)s)",
    )
