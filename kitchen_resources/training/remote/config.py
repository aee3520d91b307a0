"""What the config of every service of primitives is checked for."""

from collections.abc import Collection, Mapping

from kitchen_resources.errors import ConfigError


def check_service(backend: str, positive: Mapping[str, float | None], models: Collection[str]) -> None:
    """Refuse a setting that no service can be asked with.

    Args:
        backend: Its name.
        positive: Settings that must be above 0 where they are set.
        models: The roles that are given a model of the service.

    Raises:
        ConfigError: With the setting.
    """
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(
                f"must be above 0, got {value}", where=f"trainer.backend.{backend}.{name}", fix=f"{name}: 30"
            )
    unknown = sorted(set(models) - {"teacher", "reference"})
    if unknown:
        raise ConfigError(
            f"there is no role {unknown[0]!r}", where=f"trainer.backend.{backend}.models", fix="teacher or reference"
        )
