"""Which pod template is in force: the one that is asked for, or the last good one.

A change that does not come up before the progress deadline is rolled back: the Deployment gets the
last template whose rollout completed, and the status says why. The refused template is tried again
when the user changes the spec, or gives the upgrade annotation a new value. A template that has
served is not refused: its pods fail for other reasons, as when they are restarted while the model's
source is down. All memory is in annotations of the Deployment, so it is gone exactly when the pods
are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo_operator.json_text import read_shallow
from octavo_operator.labels import (
    ANNOTATION_GOOD_TEMPLATE,
    ANNOTATION_POD_TEMPLATE,
    ANNOTATION_REFUSED_TEMPLATE,
    ANNOTATION_SERVED_TEMPLATE,
    ANNOTATION_UPGRADED_BY,
)
from octavo_operator.manifests.digest import manifest_digest
from octavo_operator.reconcile.live_object import LiveObject, annotations_of
from octavo_operator.reconcile.pinning import PinnedTemplate, remembered_template
from octavo_operator.reconcile.workload import Workload

_CAUSE_LIMIT: Final = 400


@dataclass(frozen=True, slots=True)
class Revision:
    """The template to apply, and what the Deployment must remember for the next look.

    refusal: why the template that is asked for is not in force; None when it is.
    """

    template: Mapping[str, Any]
    annotations: Mapping[str, str]
    refusal: str | None

    @property
    def digest(self) -> str:
        """Tells this template from others."""
        return manifest_digest(self.template)


def choose_revision(
    pinned: PinnedTemplate,
    live: LiveObject | None,
    workload: Workload,
    failure: str | None,
) -> Revision:
    """The revision for a Deployment that is `live` now (None: not there yet).

    `failure` says why the present rollout cannot come up, None while it may.
    """
    memory = annotations_of(live)
    asked = manifest_digest(pinned.template)
    before = remembered_template(memory.get(ANNOTATION_POD_TEMPLATE))
    good, refused = memory.get(ANNOTATION_GOOD_TEMPLATE), _refused(memory)
    is_new = before is None or manifest_digest(before) != asked
    is_retry = pinned.annotations.get(ANNOTATION_UPGRADED_BY) != memory.get(ANNOTATION_UPGRADED_BY)
    if is_new or is_retry:
        if is_new and refused is None and has_served(before, memory, workload):
            good = memory[ANNOTATION_POD_TEMPLATE]
        refused = None
    elif refused is None and failure is not None and _may_refuse(asked, good, memory):
        refused = {"template": asked, "because": failure[:_CAUSE_LIMIT]}
    annotations = dict(pinned.annotations)
    if good is not None:
        annotations[ANNOTATION_GOOD_TEMPLATE] = good
    served = _served_digest(before, memory, workload)
    if served is not None:
        annotations[ANNOTATION_SERVED_TEMPLATE] = served
    fallback = remembered_template(good)
    if refused is None or refused.get("template") != asked or fallback is None:
        return Revision(pinned.template, annotations, None)
    annotations[ANNOTATION_REFUSED_TEMPLATE] = json.dumps(refused, sort_keys=True)
    return Revision(fallback, annotations, str(refused.get("because")))


def has_served(
    before: Mapping[str, Any] | None, memory: Mapping[str, str], workload: Workload
) -> bool:
    """Whether the template `before` has ever served: a Deployment counts as complete with no pod,
    too, and goes on to when one is woken. Operators of before kept no note of that."""
    if before is None:
        return False
    if ANNOTATION_SERVED_TEMPLATE in memory:
        is_noted = memory[ANNOTATION_SERVED_TEMPLATE] == manifest_digest(before)
        return is_noted or workload.serves_in_full
    return workload.has_completed and workload.available > 0


def _served_digest(
    before: Mapping[str, Any] | None, memory: Mapping[str, str], workload: Workload
) -> str | None:
    """What is to be noted: while a refused template is not in force, nothing new."""
    if before is None or not workload.serves_in_full or ANNOTATION_REFUSED_TEMPLATE in memory:
        return memory.get(ANNOTATION_SERVED_TEMPLATE)
    return manifest_digest(before)


def _may_refuse(asked: str, good: str | None, memory: Mapping[str, str]) -> bool:
    """Whether the template with that digest may be to blame, and there is another to put back."""
    if memory.get(ANNOTATION_SERVED_TEMPLATE) == asked:
        return False
    template = remembered_template(good)
    return template is not None and manifest_digest(template) != asked


def _refused(memory: Mapping[str, str]) -> Mapping[str, Any] | None:
    try:
        value = read_shallow(memory.get(ANNOTATION_REFUSED_TEMPLATE) or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
