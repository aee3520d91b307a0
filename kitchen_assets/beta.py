"""The few parts of Dagster's API used here that it still calls beta; the version is pinned, and tests cover them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg


def code_references(places: Sequence[tuple[str, int, str]]) -> dict[str, Any]:
    """Asset metadata that points to source lines: path, line, label."""
    if not places:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        references = [
            dg.LocalFileCodeReference(file_path=path, line_number=line, label=label) for path, line, label in places
        ]
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=list(references))}


def versioned_output(data_version: str, metadata: Mapping[str, Any]) -> dg.Output[None]:
    """The output of a graph's last op, with the data version of the asset that the graph makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.Output(None, metadata=dict(metadata), data_version=dg.DataVersion(data_version))


class _RunningSensor(dg.SensorDefinition):
    def with_attributes(self, **changes: Any) -> dg.SensorDefinition:
        """As Dagster calls it to bind resources to the sensor's jobs; it passes an empty list of owners, which is beta."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            return super().with_attributes(**changes)


def running_sensor(**declared: Any) -> Callable[[Callable[..., Any]], dg.SensorDefinition]:
    """A sensor that is on from the start; otherwise as `dagster.sensor`."""

    def make(look: Callable[..., Any]) -> dg.SensorDefinition:
        return _RunningSensor(evaluation_fn=look, default_status=dg.DefaultSensorStatus.RUNNING, **declared)

    return make
