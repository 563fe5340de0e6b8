"""Exceptions that end a training run."""


class TrainingError(ValueError):
    """Training cannot continue; the message says what to change."""


class PeerFailure(Exception):
    """Another rank failed, and reports the cause."""


class Interrupted(Exception):
    """The user stopped the run, and a checkpoint was saved."""
