"""Recipe fields: a default, a description, bounds, and what the field moves.

Bounds are kept beside the field and not inside the pydantic type. A value out of bounds must reach `preflight`,
whose message names field, value, bound and fix; pydantic would fail inside Dagster's resource set-up instead.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

Moves = Literal["weights", "data", "base", "nothing"]
"""What changes when a field changes: the weights (the field itself enters the identity), the prepared data or the
base model (whose digest enters the identity), or nothing that was learned."""

_KEY = "kitchen"


@dataclass(frozen=True)
class FieldFacts:
    """What the kitchen knows of a field beyond its type.

    Attributes:
        moves: See `Moves`.
        minimum: Smallest valid value; `above` excludes the bound itself.
        maximum: Largest valid value; `below` excludes the bound itself.
        added_in: Identity version that first knew the field. A field added after 1 enters an identity only when
            it differs from `neutral`, the value that reproduces what was done before it existed.
        neutral: See `added_in`.
        unordered: Whether a list is a set: its order and repetitions mean nothing.
    """

    moves: Moves
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    added_in: int = 1
    neutral: Any = None
    unordered: bool = False

    def violated_bound(self, value: float) -> str | None:
        """The bound that a number violates, in words; None when it is within all of them."""
        if value != value or value in (float("inf"), float("-inf")):
            return "must be a finite number"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum}"
        if self.above is not None and value <= self.above:
            return f"must be greater than {self.above}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum}"
        if self.below is not None and value >= self.below:
            return f"must be less than {self.below}"
        return None

    def nearest(self, value: float) -> str:
        """What to write instead of a number that violates a bound, in words where the bound itself isn't valid."""
        if value != value:
            return "a finite number"
        if self.minimum is not None and value < self.minimum:
            return str(self.minimum)
        if self.maximum is not None and value > self.maximum:
            return str(self.maximum)
        if self.above is not None and value <= self.above:
            return f"a number above {self.above}"
        return f"a number below {self.below}" if self.below is not None else "a finite number"


def recipe_field(
    default: Any,
    description: str,
    *,
    moves: Moves,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    added_in: int = 1,
    neutral: Any = None,
    unordered: bool = False,
) -> Any:
    """A pydantic field that carries its `FieldFacts`."""
    facts = FieldFacts(moves, minimum, above, maximum, below, added_in, neutral, unordered)
    return Field(default=default, description=description, json_schema_extra={_KEY: vars(facts)})


def facts_of(field: FieldInfo) -> FieldFacts | None:
    """The facts of a field, or None when it was not made by `recipe_field`."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or _KEY not in extra:
        return None
    return FieldFacts(**extra[_KEY])  # type: ignore[arg-type]


def written_class(model: type[BaseModel]) -> type[BaseModel]:
    """The class that a recipe class or block was written as: the bound ones made of it have a recipe's values as defaults."""
    written = (
        kind for kind in model.__mro__ if getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    )
    return cast(type[BaseModel], next(written))


def fields_with_facts(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, FieldFacts]]:
    """Every field of a recipe class or block, with its facts, in the order of definition."""
    for name, field in model.model_fields.items():
        facts = facts_of(field)
        if facts is not None:
            yield name, field, facts
