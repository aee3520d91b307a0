"""The few parts of Dagster's API used here that it still calls beta; the version is pinned, and tests cover them."""

import warnings
from collections.abc import Mapping, Sequence
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
