"""The model card of a registered version: what it is, what was measured of it, and what it takes to make it again."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kitchen_resources.registry.port import ModelVersion

_MEASURED_HEAD = "| measure | base | this model | 95 % interval | rows |\n|---|---|---|---|---|"


def model_card(version: ModelVersion, *, kind: str) -> str:
    """The card as markdown with a YAML head, as hubs read it.

    What lies on the machine that trained, such as the folder of a local base or data set, is named by its digest alone.

    Args:
        version: The version.
        kind: What the folder holds: `merged` weights or an `adapter`.
    """
    from huggingface_hub import ModelCardData

    base = _public_name(version.base["reference"])
    data = ModelCardData(
        base_model=base,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["crucible-kitchen", str(version.identity["method"])],
        datasets=_public_datasets(version) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(version, base, kind)}"


def _body(version: ModelVersion, base: str | None, kind: str) -> str:
    identity = version.identity
    made = datetime.fromtimestamp(version.created, UTC).date().isoformat()
    of = f"[{base}](https://huggingface.co/{base})" if base else f"a local model (`{version.base['digest'][:12]}`)"
    sections = [
        f"# {version.name}, version {version.version}",
        f"Trained by {identity['method']} from {of}, registered on {made}. "
        + ("An adapter: load it on its base with peft." if kind == "adapter" else "Whole weights."),
        "The licence of its base, and of its data, applies to it too.",
        "## Measured",
        _measures(version),
        "## Made of",
        _table(
            {
                "run": version.fingerprint,
                "checkpoint": f"step {version.step}, epoch {version.epoch}, state `{version.state_digest[:16]}`",
                "base": f"`{version.base['digest'][:16]}` {version.base.get('revision', '')}".strip(),
                "prepared data": f"`{version.dataset['digest'][:16]}`",
                "optimiser steps": f"{version.cost.get('optimizer_steps', 0):,.0f}",
                "trained tokens": f"{version.cost.get('tokens', 0):,.0f}",
                "seconds in steps": f"{version.cost.get('seconds', 0):,.0f}",
                **({"estimated by the service": f"{version.cost['usd']:,.2f} USD"} if "usd" in version.cost else {}),
            }
        ),
        "## Recipe",
        "What moves the weights; the same values on the same base and data are the same run.",
        f"```json\n{json.dumps(identity['recipe'], indent=2, sort_keys=True)}\n```",
        "## Environment",
        _table({name: str(value) for name, value in sorted(version.environment.items())}),
    ]
    return "\n\n".join(sections) + "\n"


def _measures(version: ModelVersion) -> str:
    if not version.metrics:
        return "Nothing was measured of it."
    lines = [_MEASURED_HEAD]
    for name, found in sorted(version.metrics.items()):
        before = version.base_metrics.get(name)
        interval = "" if found.get("low") is None else f"{found['low']:.4g} to {found['high']:.4g}"
        base = f"{before['value']:.4g}" if before else ""
        lines.append(f"| {name} | {base} | {found['value']:.4g} | {interval} | {found['n']} |")
    return "\n".join(lines)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _public_name(reference: str) -> str | None:
    """A model's or data set's name on a hub; None where it is something of this machine or store."""
    from kitchen_resources.hub.repo import is_repo_id

    name = reference.partition("@")[0]
    is_public = "/" in name and ":" not in name and is_repo_id(name)
    return name if is_public else None


def _public_datasets(version: ModelVersion) -> list[str]:
    raw: Any = version.dataset.get("raw", {})
    found = (raw.get(split, {}) for split in ("train", "held_out")) if isinstance(raw, Mapping) else ()
    named = (_public_name(str(each.get("reference", ""))) for each in found if each and each.get("kind") == "hub")
    return sorted({name for name in named if name})
