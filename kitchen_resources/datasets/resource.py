"""The `datasets` resource: where data sets come from."""

from typing import Literal, Union

import dagster as dg
from pydantic import Field

from kitchen_resources.datasets.port import DatasetStore
from kitchen_resources.datasets.sources import NoopDatasets, SourceDatasets


class Sources(dg.Config):
    """Files, folders, the hub and the embedded sets, by what the recipe names."""

    kind: Literal["sources"] = "sources"

    def adapter(self) -> DatasetStore:
        """The store."""
        return SourceDatasets()


class NoopSource(dg.Config):
    """Simulated rows, whatever is named."""

    kind: Literal["noop"] = "noop"
    size: int = Field(default=64, description="Rows of each data set.")

    def adapter(self) -> DatasetStore:
        """The store."""
        return NoopDatasets(self.size)


class DatasetsResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where data sets come from."""

    source: Union[Sources, NoopSource] = Field(
        default_factory=Sources, discriminator="kind", description="Where rows are read."
    )

    def adapter(self) -> DatasetStore:
        """The store."""
        return self.source.adapter()
