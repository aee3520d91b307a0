"""A cookbook: its recipes, its adapters, and where things are kept; all else is the kitchen's."""

import os
from pathlib import Path

from quiz.adapters import QuizDatasets
from quiz.environments import Counting

import kitchen_assets as kitchen
from kitchen_resources.blobs.resource import BlobsResource, LocalStore, S3Store
from kitchen_resources.environments.registry import register_environment

HERE = Path(__file__).parent
PROFILES = {
    "local": lambda: LocalStore(path=os.environ.get("COOKBOOK_STORE", str(HERE / "store"))),
    "s3": lambda: S3Store(bucket=os.environ["COOKBOOK_BUCKET"], endpoint_url=os.environ.get("COOKBOOK_ENDPOINT", "")),
}

register_environment("counting", Counting)

COOKBOOK = kitchen.Kitchen(
    name="cookbook",
    recipes=HERE / "recipes",
    resources={
        "blobs": BlobsResource(store=PROFILES[os.environ.get("COOKBOOK_PROFILE", "local")]()),
        "datasets": QuizDatasets(HERE / "quizzes"),
    },
)
defs = COOKBOOK.definitions()
