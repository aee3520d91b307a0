"""Models and data sets of a hub, fetched before training starts.

Training itself never uses the network: it loads from the local snapshot folder that is returned here. The
files lie in the Hugging Face cache, so what another tool has fetched is not fetched again.
"""

from kitchen_resources.hub.fetch import current_commit, fetch_dataset, fetch_model
from kitchen_resources.hub.repo import HubUnreachable, Snapshot, is_repo_id

__all__ = ["HubUnreachable", "Snapshot", "current_commit", "fetch_dataset", "fetch_model", "is_repo_id"]
