"""The errors of the kitchen: few, named, and each message says what, where and how to fix it."""


class KitchenError(Exception):
    """Base of every error that the kitchen raises on purpose.

    Args:
        what: What is wrong, with the value that is wrong.
        where: The field, file, row, step or key it is wrong at.
        fix: What to do about it, as a line to write or a command to type.

    Attributes:
        mendable: Whether running the same thing again can succeed. The resume sensor relaunches only these.
    """

    mendable = False

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)


class ConfigError(KitchenError):
    """A recipe, a resource or a setting is wrong; refused before any work."""


class DataError(KitchenError):
    """The data set can't be read, or holds rows that can't be trained on."""


class CapabilityError(KitchenError):
    """The recipe asks for something that the chosen backend doesn't offer."""


class HubError(KitchenError):
    """A model or data set on a hub can't be fetched: gated, missing, unreachable, or only pickled."""


class CheckpointError(KitchenError):
    """A stored checkpoint is missing, damaged, or belongs to another run."""


class StateLost(CheckpointError):
    """A remote service keeps the state of a checkpoint no more, or gives another one for it; the one before is used."""


class FormatError(CheckpointError):
    """A newer version of the kitchen wrote it. It is no damage: nothing is quarantined, replaced or deleted for it."""


class LedgerError(CheckpointError):
    """Optimiser steps received other rows than planned. The run's model isn't registered."""


class EarlierFailure(KitchenError):
    """An earlier epoch of the same launch failed, and so this one isn't tried; that epoch's error is the run's."""


class BlobError(KitchenError):
    """The blob store refused or lost a read or a write.

    Args:
        what: As in KitchenError.
        where: As in KitchenError.
        fix: As in KitchenError.
        retriable: Whether the store may well do the same later: it was away, or asked for patience.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", retriable: bool = False) -> None:
        super().__init__(what, where=where, fix=fix)
        self.mendable = retriable


class LeaseLost(KitchenError):
    """Another process took over this training run; what it publishes stands, this one stops."""

    mendable = True


class LeaseHeld(KitchenError):
    """Another process holds this training run and did not finish within the time to wait."""

    mendable = True


class BackendError(KitchenError):
    """A training backend failed.

    Args:
        what: As in KitchenError.
        where: As in KitchenError.
        fix: As in KitchenError.
        retriable: Whether the backend may well accept the same request later.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", retriable: bool = False) -> None:
        super().__init__(what, where=where, fix=fix)
        self.mendable = retriable


class TrainingDiverged(KitchenError):
    """A loss, gradient norm or weight is not finite. The same bits would diverge again, so it is not retried."""


class EpisodesFailed(KitchenError):
    """An environment or a reward fails on more episodes than a recipe allows; the same episodes would fail again."""


class OutOfMemory(KitchenError):
    """The device or the host ran out of memory; the message names what to lower."""


class DiskFull(KitchenError):
    """Too little free disk space for what comes next."""


class EvaluationError(KitchenError):
    """An evaluation can't be run: unknown scorer, no data, or a simulated model."""


class RegistryError(KitchenError):
    """A model version or alias can't be found, written or moved."""


class StageTimeout(KitchenError):
    """A stage took longer than its limit."""

    mendable = True
