"""Where the hub and its cache are, read from the environment when something is fetched.

The client reads the same variables once, at import. They are read again here, at each call, and passed on as
arguments, so that a long-lived code location follows its environment.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.endpoints import check_endpoint

_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class HubSettings:
    """The hub as this process may use it.

    Attributes:
        endpoint: Where requests go, checked to be one that the token may be sent to.
        cache: The folder of the Hugging Face cache that holds the repositories.
        offline: The variable that forbids network use, "" when none does.
    """

    endpoint: str
    cache: Path
    offline: str

    @classmethod
    def from_environment(cls) -> "HubSettings":
        """The settings by huggingface_hub's own rules (`huggingface_hub/constants.py`).

        Raises:
            ConfigError: The endpoint is not one that credentials may be sent to.
        """
        from huggingface_hub import constants

        default = "https://huggingface.co"
        # The client renews a login at the endpoint it read at import, so that one is checked as well.
        check_endpoint(constants.ENDPOINT or default, default, where="HF_ENDPOINT")
        endpoint = check_endpoint(os.environ.get("HF_ENDPOINT") or default, default, where="HF_ENDPOINT")
        offline = next((name for name in _OFFLINE_VARIABLES if os.environ.get(name, "").upper() in _TRUE), "")
        if not offline and constants.is_offline_mode():
            offline = _OFFLINE_VARIABLES[0]
        return cls(endpoint=endpoint, cache=_cache_folder(), offline=offline)


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    hugging_face = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    folder = chosen or os.path.join(hugging_face, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder))).resolve()
