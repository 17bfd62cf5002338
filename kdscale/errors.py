"""The tree of exceptions.

KDScaleError                     everything that kdscale raises on purpose
├── ConfigError                  the YAML, an override or a flag; names file, key path, nearest valid key
├── PluginError                  a plug-in or a user's own code cannot be found, loaded or configured
├── TapError                     a tap is missing, silent, fires twice, is overwritten in place, or of another form
├── ShapeError                   tensors that do not fit each other
├── DataError                    a data set is missing, damaged or not what its fingerprint says
├── CacheError                   the teacher cache
│   ├── CacheMiss                it holds no record for what was asked
│   ├── CacheStale               it was made by another teacher, data set or view scheme
│   └── CacheCorrupt             a checksum does not match
├── CheckpointError              a checkpoint or a weights file cannot be written, read or used
│   └── CheckpointMismatch       it belongs to another stage or another network
├── NonFiniteLoss                a term became nan or inf
├── OutOfMemory                  a process got no more memory; its peak, and a setting that would fit
├── StageError                   a stage cannot run, or what it depends on has failed
│   └── StageHeld                another live process is at it
└── SubmissionError              the cluster refused a job

A message says what happened, where (file and key path, or stage and step), and what would mend it.
"""

from __future__ import annotations

__all__ = [
    "CacheCorrupt",
    "CacheError",
    "CacheMiss",
    "CacheStale",
    "CheckpointError",
    "CheckpointMismatch",
    "ConfigError",
    "DataError",
    "KDScaleError",
    "NonFiniteLoss",
    "OutOfMemory",
    "PluginError",
    "ShapeError",
    "StageError",
    "StageHeld",
    "SubmissionError",
    "TapError",
]


class KDScaleError(Exception):
    """Base of all errors that kdscale raises on purpose; its text is meant for the user."""


class ConfigError(KDScaleError):
    """A configuration or a command line cannot be used."""


class PluginError(KDScaleError):
    """A plug-in, or a user's own class, cannot be found, loaded or configured."""


class TapError(KDScaleError):
    """A tap is missing, silent, fires more than once, is overwritten in place, or has not the form it is asked for.

    `tap` is how the config calls it, where it is one tap that is wrong.
    """

    def __init__(self, message: str, tap: str | None = None) -> None:
        super().__init__(message)
        self.tap = tap


class ShapeError(KDScaleError):
    """Tensors do not fit each other."""


class DataError(KDScaleError):
    """A data set is missing, damaged, or not the one its fingerprint names."""


class CacheError(KDScaleError):
    """The teacher cache cannot be used."""


class CacheMiss(CacheError):
    """The cache holds no record for a row and view."""


class CacheStale(CacheError):
    """The cache was made by another teacher, data set, view scheme or record layout."""


class CacheCorrupt(CacheError):
    """A block's checksum does not match its bytes; `block` is its number, where it is one block that is damaged."""

    def __init__(self, message: str, block: int | None = None) -> None:
        super().__init__(message)
        self.block = block


class CheckpointError(KDScaleError):
    """A checkpoint or weights file cannot be written, read or used."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint belongs to another stage, or weights to another network."""


class NonFiniteLoss(KDScaleError):
    """A term of the loss became nan or inf; `step` is the first at which one did, where that is known."""

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class OutOfMemory(KDScaleError):
    """A process of a stage got no more memory."""


class StageError(KDScaleError):
    """A stage cannot run, or something it depends on has failed."""


class StageHeld(StageError):
    """Another live process holds the stage: no failure, only a reason to wait for it."""


class SubmissionError(KDScaleError):
    """The cluster refused a job."""
