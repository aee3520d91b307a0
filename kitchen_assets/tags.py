"""The tags by which runs say what they are and how they ended."""

RECIPE = "kitchen/recipe"
WORKFLOW = "kitchen/workflow"
KIND = "kitchen/kind"
BACKEND = "kitchen/backend"
FINGERPRINT = "kitchen/fingerprint"

REFUSED = "kitchen/refused"
ERROR = "kitchen/error"
MENDABLE = "kitchen/mendable"
WORKER = "kitchen/worker"

RESUME_OF = "kitchen/resume_of"
ATTEMPT = "kitchen/attempt"
FROM_STEP = "kitchen/from_step"
EXPECTED = "kitchen/expected"
"""Fingerprint of the run that a further attempt goes on with; it trains nothing else."""

IN_PROCESS = "kitchen/in_process"
"""What a run was given as Python objects, so that its config alone isn't what it trains."""

RUN_OWN = frozenset({FINGERPRINT, REFUSED, ERROR, MENDABLE, WORKER})
"""Tags that a run gives itself, and that a further attempt at it doesn't take over."""
