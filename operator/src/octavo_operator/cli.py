"""The command line: `run` in a cluster, `local` without one, `render` to look at the manifests.

The only place that reads the environment. Imports are late, so that local mode starts quickly and
needs neither kopf nor the Kubernetes client. Exit codes: 0 stopped as asked, 1 something failed,
2 the input is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from octavo_operator import __version__
from octavo_operator.errors import (
    LocalError,
    OctavoOperatorError,
    ResourceError,
    SettingsError,
    WorkerFailedError,
)

FAILED: Final = 1
WRONG_INPUT: Final = 2
_SHOWN_LINES: Final = 20
_LOCAL_EXAMPLES: Final = """\
examples:
  octavo-operator local -f examples/smollm2.yaml
  octavo-operator local -f chat.yaml --port 0

chat.yaml may hold, between lines of ---, the LoRAAdapters of its service and the Secrets they name:
  apiVersion: serving.octavo.dev/v1alpha1
  kind: InferenceService
  metadata: {name: chat}
  spec:
    model: {uri: "hf://org/model"}
    replicas: 1
    engine: {lora: {maxRank: 16}}
    accelerator: {resource: none}      # on the CPU
  ---
  apiVersion: serving.octavo.dev/v1alpha1
  kind: LoRAAdapter
  metadata: {name: sql}
  spec:
    serviceRef: {name: chat}
    servedName: chat-sql               # what requests send as "model"
    source: {uri: "file:///path/of/the/adapter"}     # or hf://, s3://

The file is read again when it changes: adapters come and go while the model serves.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OctavoOperatorError as error:
        print(f"octavo-operator: {error}", file=sys.stderr)
        if isinstance(error, WorkerFailedError) and error.last_lines:
            print("Its last lines:", file=sys.stderr)
            for line in error.last_lines[-_SHOWN_LINES:]:
                print(f"  {line}", file=sys.stderr)
        is_input = isinstance(error, ResourceError | SettingsError) or type(error) is LocalError
        return WRONG_INPUT if is_input else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="octavo-operator", description="Serve language models from Kubernetes resources."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run the operator against a cluster"))
    _add_local(commands.add_parser("local", help="serve a resource on this machine, no cluster"))
    _add_retire(commands.add_parser("retire", help="stop the operator and let go of its resources"))
    _add_render(commands.add_parser("render", help="print the manifests of a resource"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    helps = {
        "namespaces": "namespaces to watch, separated by commas; none for all",
        "worker_image": "worker image where an InferenceService names none",
        "worker_peers": "NetworkPolicy peers that may reach workers of any namespace, in JSON: "
        '{"api": [...], "admin": [...]}; or everybody',
        "resync_s": "seconds after which everything is looked at again",
        "request_timeout_s": "limit in seconds of one call to the Kubernetes API",
        "prometheus_url": "where KEDA finds the workers' metrics; none for an HPA instead",
        "pod_ip": "address of the operator's own pod, to hold calls on; none: nothing goes to zero",
        "pod_name": "name of the operator's own pod, to stand for election with",
        "pod_namespace": "namespace of the Lease; none when there is no other operator",
        "lease_name": "name of the Lease that the leading operator holds",
        "admin_key_secret": "name of the Secret with the key to workers' admin ports",
        "activator_port": "first of 1000 ports to hold calls on",
        "activator_hold_s": "longest time in seconds a call is held",
        "probe_port": "port of /healthz; 0 for none",
        "metrics_port": "port of the operator's own /metrics; 0 for none",
        "log_level": "DEBUG, INFO, WARNING or ERROR",
        "log_format": "text or json",
        "exit_timeout_s": "seconds a stopping operator may take",
    }
    for name, text in helps.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, help=f"{text} (OCTAVO_{name.upper()})")
    parser.set_defaults(command=_run)


def _add_retire(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", help="namespace of the operator itself, which is stopped")
    parser.add_argument("--deployment", help="name of its Deployment; without both it goes on")
    parser.add_argument(
        "--namespaces", help="namespaces it watches, separated by commas (OCTAVO_NAMESPACES)"
    )
    parser.set_defaults(command=_retire)


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve the InferenceService of a file on this machine, with its LoRAAdapters, as a cluster "
        "would: until Ctrl-C or SIGTERM, which drain."
    )
    parser.epilog = _LOCAL_EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        required=True,
        help="one InferenceService, its LoRAAdapters and Secrets, in YAML",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--port", type=int, default=8000, help="port to serve on; 0 for a free one")
    parser.add_argument(
        "--cache-dir", type=Path, help="folder of downloaded models (default ~/.cache/octavo)"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs to share out among the pods; those that find none wait (default: no limit)",
    )
    parser.add_argument("--verbose", action="store_true", help="show the workers' log throughout")
    parser.set_defaults(command=_local)


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="an InferenceService")
    parser.add_argument("--worker-image", help="image where the resource names none")
    parser.set_defaults(command=_render)


def _run(options: argparse.Namespace) -> int:
    from octavo_operator.handlers.operator_run import run_operator
    from octavo_operator.settings import OperatorSettings, operator_settings

    names = {field.name for field in fields(OperatorSettings)}
    flags = {name: value for name, value in vars(options).items() if name in names}
    settings = operator_settings(os.environ, flags)
    _set_up_logging(settings.log_level, settings.log_format)
    asyncio.run(run_operator(settings, is_in_cluster=_is_in_cluster()))
    return 0


def _retire(options: argparse.Namespace) -> int:
    from octavo_operator.settings import operator_settings

    settings = operator_settings(os.environ, {"namespaces": options.namespaces})
    if (options.namespace is None) != (options.deployment is None):
        raise SettingsError("--namespace and --deployment name one operator; give both, or neither")
    if options.namespace is None and not settings.namespaces:
        raise SettingsError(
            "retire is to stop no operator and release every namespace, which a running operator "
            "would hold again; give --namespace and --deployment, or --namespaces that it has left"
        )
    _set_up_logging(settings.log_level, settings.log_format)
    return asyncio.run(_let_go(options, settings))


async def _let_go(options: argparse.Namespace, settings: Any) -> int:
    from octavo_operator.cluster.kubernetes_api import KubernetesApi
    from octavo_operator.cluster.retirement import release_resources, stop_operator

    connecting = KubernetesApi.connect(settings.request_timeout_s, is_in_cluster=_is_in_cluster())
    async with await connecting as cluster:
        if options.namespace is not None:
            await stop_operator(cluster, options.namespace, options.deployment)
        count = await release_resources(cluster, settings.namespaces)
    print(f"{count} resources were held by the operator and are released")
    return 0


def _is_in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ


def _local(options: argparse.Namespace) -> int:
    from octavo_operator.local.container import Machine, installed_programs
    from octavo_operator.local.resource_file import read_resource_file
    from octavo_operator.local.session import LocalOptions

    if not 0 <= options.port <= 65_535:
        raise LocalError(f"--port is {options.port}; give a number from 0 to 65535")
    if options.gpus is not None and options.gpus < 0:
        raise LocalError(f"--gpus is {options.gpus}; give 0 or more")
    _set_up_logging("WARNING", "text")
    content = read_resource_file(options.file)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    machine = Machine(
        programs=installed_programs(),
        environment=dict(os.environ),
        cache_folder=options.cache_dir or caches / "octavo",
        secrets=content.secrets,
    )
    return asyncio.run(
        _serve_locally(
            LocalOptions(
                file=options.file,
                content=content,
                host=options.host,
                port=options.port,
                machine=machine,
                is_verbose=options.verbose,
                num_devices=options.gpus,
            )
        )
    )


async def _serve_locally(options: Any) -> int:
    from octavo_operator.local.progress import Progress
    from octavo_operator.local.session import LocalSession, curl_line
    from octavo_operator.resources.inference_service import parse_inference_service

    service = parse_inference_service(options.content.resource)

    def announce(base_url: str) -> None:
        curl = curl_line(base_url, service.model.served_name, needs_key=bool(service.api_keys))
        print(f"\nServing {service.model.served_name} at {base_url}/v1\n\n{curl}\n", flush=True)
        print("Press Ctrl-C to stop.", file=sys.stderr)

    progress = Progress(sys.stderr, is_terminal=sys.stderr.isatty())
    session = LocalSession(options, progress, announce)

    def interrupt() -> None:
        if session.is_stopping:
            session.kill()
        else:
            session.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    await session.run()
    return 0


def _render(options: argparse.Namespace) -> int:
    import yaml

    from octavo_operator.local.resource_file import read_resource_file
    from octavo_operator.reconcile.rendering import render_service
    from octavo_operator.settings import DEFAULT_WORKER_IMAGE

    content = read_resource_file(options.file)
    image = options.worker_image or DEFAULT_WORKER_IMAGE
    manifests = render_service(content.resource, image)
    yaml.safe_dump_all(manifests, sys.stdout, sort_keys=False, default_flow_style=False)
    return 0


def _set_up_logging(level: str, log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
