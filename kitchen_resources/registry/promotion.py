"""The rule for promotion: may a version become what is in production?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kitchen_resources.formulas.selection import lower_is_better
from kitchen_resources.recipes.blocks import PromotionRule
from kitchen_resources.registry.port import ModelVersion


@dataclass(frozen=True)
class Verdict:
    """Whether a version may be promoted, why, and the numbers it was decided on."""

    passed: bool
    reason: str
    numbers: Mapping[str, Any]


def judge(rule: PromotionRule, version: ModelVersion, in_production: ModelVersion | None) -> Verdict:
    """Apply the rule to a version.

    Args:
        rule: From the recipe.
        version: The version to promote.
        in_production: What is in production, or None.
    """
    if version.simulated:
        return Verdict(False, "the version is simulated", {"version": version.version})
    metric = rule.metric
    found = version.metrics.get(metric)
    numbers: dict[str, Any] = {"metric": metric, "version": version.version, "measured": found}
    if found is None:
        known = ", ".join(sorted(version.metrics)) or "nothing"
        return Verdict(False, f"{metric} was not measured; measured was {known}", numbers)
    lower = lower_is_better(metric)
    if rule.by == "interval":
        numbers["by"] = rule.by
    value, said = _end(rule, found, unfavourable="high" if lower else "low")
    if value is None:
        return Verdict(False, f"{metric} is {said}", numbers)
    if rule.minimum is not None:
        numbers["bound"] = rule.minimum
        if (value > rule.minimum) if lower else (value < rule.minimum):
            return Verdict(False, f"{metric} is {said}, the bound is {rule.minimum:g}", numbers)
    other = _other(rule, metric, version, in_production)
    if other is None:
        return Verdict(True, f"{metric} is {said}", numbers)
    name, measured = other
    numbers[name] = measured
    if measured is None:
        return Verdict(False, f"{metric} of {name} was not measured", numbers)
    than, said_of_it = _end(rule, measured, unfavourable="low" if lower else "high")
    if than is None:
        return Verdict(False, f"{metric} of {name} is {said_of_it}", numbers)
    if not (value < than if lower else value > than):
        return Verdict(False, f"{metric} is {said}, no better than {said_of_it} of {name}", numbers)
    return Verdict(True, f"{metric} is {said}, better than {said_of_it} of {name}", numbers)


def _end(rule: PromotionRule, measured: Mapping[str, Any], *, unfavourable: str) -> tuple[float | None, str]:
    """What of a measure is compared, and how it is told; None where there are too few rows for an interval."""
    value = float(measured["value"])
    if rule.by == "value":
        return value, f"{value:.4g}"
    if measured[unfavourable] is None:
        return None, f"{value:.4g} on {measured['n']} rows, too few for an interval"
    end = float(measured[unfavourable])
    return end, f"{value:.4g} ({'at least' if unfavourable == 'low' else 'at most'} {end:.4g})"


def _other(
    rule: PromotionRule, metric: str, version: ModelVersion, in_production: ModelVersion | None
) -> tuple[str, Mapping[str, Any] | None] | None:
    """What the version must be better than: a name and its measure, or None when nothing."""
    if rule.better_than == "base":
        return "the base", version.base_metrics.get(metric)
    if rule.better_than == "production" and in_production is not None and in_production.version != version.version:
        return f"version {in_production.version} in production", in_production.metrics.get(metric)
    return None
