"""docs/telemetry.md: the table of events."""

from kitchen_resources.telemetry.port import EVENTS
from kitchen_resources.telemetry.prometheus import LABELS


def render(template: str) -> str:
    """The whole page, from its template."""
    rows = ["| event | when | measurements | metadata |", "|---|---|---|---|"]
    for name, (said, measurements, metadata) in EVENTS.items():
        rows.append(f"| `{name}` | {said} | {_named(measurements)} | {_named(metadata)} |")
    return template.replace("{{ events }}", "\n".join(rows)).replace("{{ labels }}", _named(LABELS))


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name.removesuffix('?')}`{'?' * name.endswith('?')}" for name in names)
