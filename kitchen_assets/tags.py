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

RUN_OWN = frozenset({FINGERPRINT, REFUSED, ERROR, MENDABLE, WORKER})
"""Tags that a run gives itself, and that a further attempt at it doesn't take over."""
