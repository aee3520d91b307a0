"""What the demo made: accuracy before and after, where things are, and what to do next.

Fails when the model did not learn: with at least 200 held-out rows, at least 0.8 of the answers must be right.
"""

import os
import sys

from kitchen_resources.blobs.resource import default_store, open_store
from kitchen_resources.registry.port import CANDIDATE
from kitchen_resources.registry.store import StoreRegistry

RECIPE = "supervised"
METRIC = "held_out/exact_match"
LEARNED = 0.8
ROWS = 200


def main() -> int:
    store = open_store(default_store())
    registry = StoreRegistry(store)
    number = registry.alias(RECIPE, CANDIDATE)
    if number is None:
        print("no model is registered: the run before this did not finish")
        return 1
    version = registry.get(RECIPE, number)
    after, before = version.metrics.get(METRIC), version.base_metrics.get(METRIC)
    if after is None or before is None:
        print(f"{METRIC} was not measured")
        return 1
    print(f"\nModel {RECIPE}, version {number}, run {version.fingerprint[:12]}")
    print(f"  right answers on {after['n']} rows it has not seen (95 % interval)")
    for name, measure in (("before", before), ("after", after)):
        print(f"    {name:6} {measure['value']:.3f}   {measure['low']:.3f} … {measure['high']:.3f}")
    cost = version.cost
    print(
        f"  {cost['optimizer_steps']:.0f} optimiser steps, {cost['tokens']:,.0f} tokens, {cost['seconds']:.0f} s in steps"
    )
    print(f"  store        {store.uri}")
    print(f"  event log    {os.environ.get('DAGSTER_HOME', 'dagster_home')}")
    print("  look at it   make ui, then open http://127.0.0.1:3000/asset-groups (lineage) and /runs")
    print(
        f"  take it out  python -c \"import kitchen_assets as kitchen; kitchen.export('{RECIPE}@{number}', 'my_model')\""
    )
    print('  your own     README.md, "Your own model and rows"')
    if after["n"] < ROWS or after["value"] < LEARNED:
        print(
            f"\nIt did not learn: {after['value']:.3f} of {after['n']} rows, and {LEARNED} of at least {ROWS} was expected"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
