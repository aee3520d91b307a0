"""The embedded default: a small model, its tokenizer and a task, made on the spot, without a network.

`embedded:tiny` is the model and `embedded:NAME` a data set. docs/decisions/0001-embedded-default.md tells how
they were chosen.
"""

from kitchen_resources.embedded.model import model_digest, write_model
from kitchen_resources.embedded.tasks import DEFAULT_TASK, PROCEDURAL, ProceduralSet, rows
from kitchen_resources.embedded.tokenizer import build_tokenizer

__all__ = ["DEFAULT_TASK", "PROCEDURAL", "ProceduralSet", "build_tokenizer", "model_digest", "rows", "write_model"]
