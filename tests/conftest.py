"""What every test shares: one thread, no progress bars, no telemetry, nothing of the user's own settings."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
for _name in ("KITCHEN_STORE", "KITCHEN_RECIPES", "DAGSTER_HOME"):
    os.environ.pop(_name, None)

# With torch, transformers and dagster loaded, collections by Python's own thresholds were a tenth of all time.
gc.set_threshold(20_000, 20, 50)
