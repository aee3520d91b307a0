"""What samples the rollouts: the choice of an engine, its options, and whether it is installed."""

import dataclasses
import importlib.util
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kitchen_resources.endpoints import check_endpoint
from kitchen_resources.errors import CapabilityError, ConfigError
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.rules import Problem

_PREFIX = "vllm_"
_OWNED = {"importance_sampling_cap": "use importance_sampling_clip_max", "structured_outputs_regex": ""}
_NO_DEFAULT = "http://127.0.0.1"


def check_generation(recipe: ReinforcementRecipe) -> list[Problem]:
    """What is wrong with the options of the engine: names and types are TRL's; a server must be an allowed endpoint."""
    if not recipe.generation.options:
        return []
    from trl import GRPOConfig

    types = typing.get_type_hints(GRPOConfig)
    known = sorted(f.name.removeprefix(_PREFIX) for f in dataclasses.fields(GRPOConfig) if f.name.startswith(_PREFIX))
    problems: list[Problem] = []
    for name, value in recipe.generation.options.items():
        path = f"generation.options.{name}"
        if name not in known or name in _OWNED:
            problems.append(
                (path, "vllm has no such option here", f"one of {', '.join(sorted(set(known) - set(_OWNED)))}")
            )
            continue
        try:
            TypeAdapter(types[_PREFIX + name]).validate_python(value, strict=True)
        except ValidationError:
            problems.append((path, f"is of the wrong type: {value!r}", f"{name}: a {types[_PREFIX + name]}"))
    problems.extend(_wrong_server(recipe.generation.options))
    return problems


def require_engine(recipe: ReinforcementRecipe) -> None:
    """Refuse an engine that isn't installed.

    Raises:
        CapabilityError: With the line that installs it.
    """
    engine = recipe.generation.engine
    if engine != "transformers" and importlib.util.find_spec(engine) is None:
        raise CapabilityError(
            f"needs {engine}, which isn't installed",
            where=f"generation.engine: {engine}",
            fix=f'pip install "crucible-kitchen[{engine}]", or engine: transformers',
        )


def _wrong_server(options: dict[str, Any]) -> list[Problem]:
    """The server that prompts and weights would be sent to, when nobody has allowed it."""
    named = options.get("server_base_url")
    host = options.get("server_host")
    url = named or (f"http://{host}:{options.get('server_port', 8000)}" if host else None)
    if not isinstance(url, str):
        return []
    try:
        check_endpoint(url, _NO_DEFAULT)
    except ConfigError as error:
        field = "server_base_url" if named else "server_host"
        return [(f"generation.options.{field}", error.what, error.fix)]
    return []
