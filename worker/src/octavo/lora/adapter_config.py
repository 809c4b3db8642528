"""PEFT's ``adapter_config.json``: what an adapter is, and what of it is not served.

Knows the file's keys (huggingface.co/docs/peft, LoraConfig); whatever would change the result
and is not done here is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octavo.config import MAX_LORA_RANK
from octavo.errors import AdapterError

_REFUSED = {
    "use_dora": "DoRA's magnitudes",
    "lora_bias": "biases of adapters",
    "modules_to_save": "whole modules beside the adapter",
    "trainable_token_indices": "changed embeddings of single tokens",
    "target_parameters": "adapters of bare parameters",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "adapters that are activated by tokens",
    "use_qalora": "QALoRA's pooled inputs",
    "use_bdlora": "block-diagonal adapters",
    "arrow_config": "routing among adapters",
    "kasa_config": "KaSA's singular values",
    "monteclora_config": "MonteCLoRA's mixtures",
    "fan_in_fan_out": "weights stored transposed",
}
_OTHER_MODULES = ("embed_tokens", "lm_head")
_SOUND_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin training that leave the base model's weights as they are."""
_ONE = r"(?:[\w.-]|\\[A-Za-z.-]|\[[\w.^-]+\])"
_SOME = rf"{_ONE}(?:[*+?]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}})?"
_GROUP = rf"\((?:\?:)?((?:{_SOME}|[\^$|])*)\)"
_TAKEN_PATTERN = re.compile(rf"(?=.{{1,256}}$)(?:{_SOME}|[\^$|]|{_GROUP})*")
"""Groups hold no others and are not repeated, so that how long a match takes can be told, whoever
wrote it."""
_MAX_PATTERNS = 1024
"""More than any model has projections. Each is tried for each, while all other loads wait."""
_MAX_WAYS = 20_000
"""In which all patterns may try a module's name: at worst some 1.3 ms a name."""
_LONGEST_NAME = 50
_LONGEST_BASE = 4096
"""A base model's name may be a path."""
Patterns = tuple[tuple[re.Pattern[str], float], ...]
"""Of modules' names, with the value of each; the first that matches counts."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """As much of an adapter's configuration as serving needs."""

    rank: int
    alpha: float
    is_rank_stabilised: bool
    """rsLoRA: the scaling is alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732)."""
    rank_pattern: Patterns
    alpha_pattern: Patterns
    base_model: str | None

    def rank_of(self, module: str) -> int:
        """``module``: its full name in the base model, as it was when PEFT saved the adapter."""
        return int(_matched(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """What B A x is multiplied by."""
        rank = self.rank_of(module)
        alpha = _matched(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.is_rank_stabilised else alpha / rank

    def check_rank(self, max_rank: int) -> None:
        """Raise AdapterError for a rank above what the server has room for."""
        if self.largest_rank > max_rank:
            raise AdapterError(
                f"The adapter's rank is {self.largest_rank}; this server takes at most {max_rank}: "
                f"start it with --max-lora-rank {self.largest_rank} "
                f"(max_lora_rank={self.largest_rank})."
            )

    @property
    def largest_rank(self) -> int:
        return max([self.rank, *(int(rank) for _, rank in self.rank_pattern)])


def parse_peft_config(values: Mapping[str, object]) -> PeftConfig:
    """Raises :class:`octavo.errors.AdapterError`, naming the key, its value and the remedy."""
    if values.get("peft_type") != "LORA":
        raise _error(values, "peft_type", "only LORA adapters are served")
    for key, what in _REFUSED.items():
        if values.get(key):
            raise _error(values, key, f"{what} are not served; train the adapter without")
    if values.get("bias", "none") != "none":
        raise _error(values, "bias", "biases are not served; train the adapter with bias='none'")
    if not _is_sound_init(values.get("init_lora_weights", True)):
        raise _error(
            values,
            "init_lora_weights",
            "it changes the base model's weights; convert the adapter to plain LoRA when saving it "
            "(path_initial_model_for_weight_conversion), or train it with init_lora_weights=True",
        )
    _check_targets(values)
    return PeftConfig(
        rank=_rank(values, "r", values.get("r", 8)),
        alpha=_alpha(values, "lora_alpha", values.get("lora_alpha", 8)),
        is_rank_stabilised=_is_true(values, "use_rslora"),
        rank_pattern=_patterns(values, "rank_pattern", _rank),
        alpha_pattern=_patterns(values, "alpha_pattern", _alpha),
        base_model=_base_model(values, "base_model_name_or_path"),
    )


def _is_true(values: Mapping[str, object], key: str) -> bool:
    value = values.get(key) or False
    if not isinstance(value, bool):
        raise _error(values, key, "it must be true or false")
    return value


def _is_sound_init(value: object) -> bool:
    return value is None or value in _SOUND_INITS


def _check_targets(values: Mapping[str, object]) -> None:
    targets = values.get("target_modules")
    named = [targets] if isinstance(targets, str) else targets if isinstance(targets, list) else []
    for name in named:
        if any(str(name).endswith(other) for other in _OTHER_MODULES):
            raise AdapterError(
                f"target_modules names {str(name)!r:.80} in adapter_config.json; embeddings and "
                "the output head are not adapted, train the adapter on the layers' projections."
            )


def _patterns(
    values: Mapping[str, object],
    key: str,
    checked: Callable[[Mapping[str, object], str, object], float],
) -> Patterns:
    """As PEFT matches them: a pattern stands for the end of a name, after a dot."""
    given = values.get(key) or {}
    if not isinstance(given, Mapping):
        raise _error(values, key, "it must be an object")
    if len(given) > _MAX_PATTERNS:
        raise AdapterError(
            f"{key} has {len(given)} keys in adapter_config.json; at most {_MAX_PATTERNS} are "
            "taken, write one key for modules that are alike."
        )
    patterns, num_ways = [], 0
    for name, value in given.items():
        if not _TAKEN_PATTERN.fullmatch(name):
            raise _error(
                values,
                key,
                f"its key {name!r:.80} is not a pattern that is taken; write modules' names, with "
                "character classes, repeated characters, and groups that are neither repeated nor "
                "in one another",
            )
        num_ways += _num_ways(name)
        if num_ways > _MAX_WAYS:
            raise _error(
                values,
                key,
                f"with its key {name!r:.80} a module's name could be matched in {num_ways} ways; "
                f"at most {_MAX_WAYS} are tried, write fewer groups and repetitions",
            )
        try:
            pattern = re.compile(rf"(?:.*\.)?(?:{name})$")
        except re.error as error:
            raise _error(values, key, f"its key {name!r:.80} cannot be matched ({error})") from None
        patterns.append((pattern, checked(values, key, value)))
    return tuple(patterns)


def _num_ways(pattern: str) -> int:
    """At most so many ways has a matcher that goes back to try a module's name."""
    groups = re.findall(_GROUP, pattern)
    choices = [*groups, re.sub(_GROUP, "", pattern)]
    repeats = re.findall(r"[*+?{]", pattern.replace("(?:", "("))
    return math.prod(
        [1 + each.count("|") for each in choices]
        + [2 if repeat == "?" else _LONGEST_NAME for repeat in repeats]
    )


def _matched(patterns: Patterns, module: str, otherwise: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(module)), otherwise)


def _rank(values: Mapping[str, object], key: str, rank: object) -> int:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_LORA_RANK:
        raise _error(values, key, f"ranks go from 1 to {MAX_LORA_RANK}")
    return rank


def _alpha(values: Mapping[str, object], key: str, alpha: object) -> float:
    try:
        is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
        number = float(alpha) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _error(values, key, "it must be a number")
    return number


def _base_model(values: Mapping[str, object], key: str) -> str | None:
    """It is told to clients, so it is a text: JSON can spell half of a surrogate pair."""
    name = values.get(key)
    if not isinstance(name, str) or not name:
        return None
    if len(name) > _LONGEST_BASE or any("\ud800" <= one <= "\udfff" for one in name):
        raise _error(
            values, key, f"it must be a name or a path, of {_LONGEST_BASE} characters at most"
        )
    return name


def _error(values: Mapping[str, object], key: str, reason: str) -> AdapterError:
    return AdapterError(f"{key} is {values.get(key)!r:.120} in adapter_config.json: {reason}.")
