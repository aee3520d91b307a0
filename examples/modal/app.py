"""The function that carries out orders of the kitchen at Modal.

    modal secret create crucible-kitchen KITCHEN_STORE=s3://bucket/prefix AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…
    modal deploy examples/modal/app.py

Deploy it from the environment that launches runs, and again whenever that changes: the image gets the same versions of
everything, and a run that was planned with others is refused. Change GPU and TIMEOUT_S as you need them.
"""

import importlib.metadata
import os
import sys
from collections.abc import Iterator

import modal
from packaging.requirements import Requirement

GPU = os.environ.get("KITCHEN_MODAL_GPU", "H100") or None
"""What a call gets; empty for CPUs alone, and then `device: cpu` in the run's config."""

TIMEOUT_S = 24 * 60 * 60
"""The longest epoch, in seconds; a day is the most that Modal grants."""


def pins(package: str = "crucible-kitchen") -> list[str]:
    """What a package needs, and what that needs, at the versions that are installed here."""
    found: dict[str, str] = {}
    waiting = [package]
    while waiting:
        name = waiting.pop()
        for needed in _needs(name):
            version = importlib.metadata.version(needed)
            if needed not in found:
                # Without the build: here it may be one for CPUs.
                found[needed] = version.partition("+")[0]
                waiting.append(needed)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _needs(package: str) -> Iterator[str]:
    for text in importlib.metadata.requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name.lower().replace("_", "-")


def image() -> modal.Image:
    """The pins, the kitchen's own packages, and a place for files."""
    built = modal.Image.debian_slim(python_version="{}.{}".format(*sys.version_info)).pip_install(*pins())
    built = built.env({"KITCHEN_SCRATCH": "/kitchen", "TOKENIZERS_PARALLELISM": "false"})
    return built.add_local_python_source("kitchen_resources", ignore=["**/__pycache__/**"])


app = modal.App("crucible-kitchen")


@app.function(
    # In the container the image is there already, and the pins aren't to be looked up again.
    image=image() if modal.is_local() else None,
    gpu=GPU,
    timeout=TIMEOUT_S,
    secrets=[modal.Secret.from_name("crucible-kitchen")],
    # Of an order that was begun and lost the launcher makes another one, from the last checkpoint.
    retries=0,
    # Nothing is returned; and what is, isn't to be a pickle.
    _experimental_restrict_output=True,
)
def carry_out(order: str) -> None:
    """Train one epoch, as the order under that key of the store says."""
    from kitchen_resources.training.orders.carrying_out import carry_out as work

    call = modal.current_function_call_id()
    assert call is not None, "only Modal calls this"
    work(order, call)
