"""Scorers by registered name: the built-in formulas, and those that a code location adds."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kitchen_resources.errors import ConfigError, KitchenError
from kitchen_resources.evaluation.harness import wrong_harness_options
from kitchen_resources.evaluation.judge import judge, wrong_judge_options
from kitchen_resources.formulas.scoring import BUILT_IN, Score
from kitchen_resources.recipes.blocks import HARNESS

Scorer = Callable[..., Score]
"""(prediction, expected, **options) -> Score. One that has a parameter `question` gets what was asked there."""

_MORE: Mapping[str, Scorer] = {"judge": judge}
"""Built in too, but no formulas: they ask somebody."""

_registered: dict[str, Scorer] = {}


def register_scorer(name: str, scorer: Scorer) -> None:
    """Make a scorer known in this code location, so that recipes can name it.

    Launch config only ever names scorers; it can't import any.

    Raises:
        ConfigError: The name is taken by another one.
    """
    known = wrong_harness_options if name == HARNESS else _known(name)
    if known is not None and known is not scorer:
        raise ConfigError(f"the scorer {name!r} exists already", where="register_scorer", fix="choose another name")
    _registered[name] = scorer


def find_scorer(name: str) -> Scorer:
    """A scorer by name.

    Raises:
        ConfigError: There is none of that name.
    """
    scorer = _known(name)
    if scorer is None:
        names = ", ".join(sorted({*BUILT_IN, *_MORE, HARNESS, *_registered}))
        raise ConfigError(
            f"there is no scorer {name!r}",
            where="evaluations.scorer",
            fix=f"one of {names}, or register_scorer(…) yours",
        )
    return scorer


def asks_question(scorer: Scorer) -> bool:
    """Whether a scorer wants to know what was asked."""
    return "question" in inspect.signature(scorer).parameters


def _known(name: str) -> Scorer | None:
    return BUILT_IN.get(name) or _MORE.get(name) or _registered.get(name)


def wrong_options(name: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong with a scorer's options, or None. Values are tried on a built-in scorer; yours is only read."""
    if name == HARNESS:
        return wrong_harness_options(options)
    parameters = list(inspect.signature(find_scorer(name)).parameters.values())[2:]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [name for name in named if name != "question"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [option for option in options if option not in known and not takes_any]
    if unknown:
        return f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
    missing = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in options]
    if missing:
        return f"{name} needs the option {missing[0]!r}"
    if name == "judge":
        return wrong_judge_options(options)
    if name in BUILT_IN:
        try:
            BUILT_IN[name]("0", "0", **options)
        except (KitchenError, TypeError, ValueError) as error:
            return f"{name} can't take these options: {getattr(error, 'what', error)}"
    return None
