"""Errors a user can fix. Each message tells what was found, what was wanted and what to change."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can fix; the command line prints it as one paragraph and exits with code 2."""


class ConfigError(UserError):
    """A configuration that cannot run: unknown key, wrong type, contradiction, missing file."""


class CheckpointError(UserError):
    """A checkpoint that is truncated, foreign, or made by another configuration."""


class TrainingStopped(RuntimeError):
    """The run cannot go on: every row failed, too many non-finite steps, no space left on the device."""
