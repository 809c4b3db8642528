"""The cluster under test, the operator in it, a namespace for the stories, a dump of failures."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator

import pytest

from cluster import Cluster, Object, wait_for
from diagnostics import dump_namespace
from environment import Environment, NotAllowedError, read_environment
from release import NAME, Release, first_values
from services import Stage

_LABELS = {"app.kubernetes.io/part-of": "octavo-e2e"}
_CRDS = ("inferenceservices.serving.octavo.dev", "loraadapters.serving.octavo.dev")
_RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
_failed: dict[str, bool] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker("e2e")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        _failed[item.nodeid] = True
    return report


@pytest.fixture(scope="session")
def environment() -> Environment:
    """Nothing runs, and the suite fails, where the context is not named."""
    try:
        return read_environment()
    except NotAllowedError as error:
        pytest.exit(f"e2e: {error}", returncode=2)


@pytest.fixture(scope="session")
def cluster(environment: Environment) -> Cluster:
    found = Cluster(environment.context)
    _refuse_foreign_crds(found, environment)
    shutil.rmtree(environment.dump, ignore_errors=True)
    return found


def _refuse_foreign_crds(cluster: Cluster, environment: Environment) -> None:
    for name in _CRDS:
        crd = cluster.find("customresourcedefinitions", None, name)
        if crd is None or environment.may_replace:
            continue
        owner = (crd["metadata"].get("annotations") or {}).get("meta.helm.sh/release-name")
        if owner != NAME:
            pytest.exit(
                f"e2e: context {environment.context} has the CRD {name} already; these tests would "
                f"replace it and in the end delete it with every resource. If they may, set "
                f"OCTAVO_E2E_REPLACE=yes",
                returncode=2,
            )


@pytest.fixture(scope="session")
def namespaces(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """One for the operator, one for the stories; both enforce restricted pod security."""
    suffix = uuid.uuid4().hex[:6]
    names = (f"octavo-e2e-system-{suffix}", f"octavo-e2e-{suffix}")
    for name in names:
        metadata = {"name": name, "labels": {**_LABELS, **_RESTRICTED}}
        cluster.create(
            "namespaces", None, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        )
    yield names
    for name in names:
        cluster.delete("namespaces", None, name)
    for name in names:
        wait_for(
            f"namespace {name} is gone",
            lambda name=name: cluster.find("namespaces", None, name),
            lambda found: found is None,
            180,
        )


@pytest.fixture(scope="session")
def release(
    cluster: Cluster, environment: Environment, namespaces: tuple[str, str]
) -> Iterator[Release]:
    """The operator, installed by helm with the CRDs."""
    if environment.may_replace:
        for name in _CRDS:
            cluster.delete("customresourcedefinitions", None, name)
            _wait_crd_gone(cluster, name)
    wanted = Release(environment, namespaces[0], first_values(environment, [namespaces[1]]))
    try:
        wanted.install()
        yield wanted
    except BaseException:
        dump_namespace(cluster, namespaces[0], environment.dump / "install")
        raise
    finally:
        dump_namespace(cluster, namespaces[0], environment.dump / "operator")
        for service in cluster.list_all("inferenceservices", namespaces[1]):
            cluster.delete("inferenceservices", namespaces[1], service["metadata"]["name"])
        wanted.uninstall()
        for name in _CRDS:
            _wait_crd_gone(cluster, name)


def _wait_crd_gone(cluster: Cluster, name: str) -> None:
    def look() -> Object | None:
        return cluster.find("customresourcedefinitions", None, name)

    wait_for(f"CRD {name} is gone", look, lambda found: found is None, 120)


@pytest.fixture
def stage(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    environment: Environment,
    namespaces: tuple[str, str],
    release: Release,
) -> Iterator[Stage]:
    """Where a story plays; afterwards it is dumped if the story failed, and swept."""
    here = Stage(cluster, environment, namespaces[1])
    yield here
    if _failed.get(request.node.nodeid):
        folder = environment.dump / request.node.name
        dump_namespace(cluster, here.namespace, folder)
        dump_namespace(cluster, namespaces[0], folder / "operator")
    for plural in ("loraadapters", "inferenceservices"):
        for item in cluster.list_all(plural, here.namespace):
            cluster.delete(plural, here.namespace, item["metadata"]["name"])
    wait_for(
        "the worker pods are gone",
        lambda: cluster.list_all(
            "pods", here.namespace, {"app.kubernetes.io/name": "octavo-worker"}
        ),
        lambda pods: not pods,
        180,
    )
