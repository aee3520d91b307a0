"""The engine of Crucible Kitchen: recipes, data sets, training, checkpoints, evaluation, registry.

It is usable without Dagster's graph; `kitchen_assets` is what the Dagster UI shows and imports this package,
never the other way round.
"""

import os

# Set before torch, transformers or trl load, since each reads its variable once at import.
_DEFAULTS = {
    # 13 ms became 515 ms a step on busy cores while idle OpenMP threads were spinning; same bits either way.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
