"""Every expected failure, and the exit code each one ends a command with.

PipelineError
├── UsageError           2   the command line asks for something that cannot be
├── BadDataError        65   the data is there, but is not what it should be
│   └── DamagedError    65   a cache is not what was written: repair it
├── NoInputError        66   the data is not there
├── UnreachableError    69   a host or an optional package is missing
├── CannotCreateError   73   the output cannot be made where it was asked for
├── StorageError        74   reading or writing failed (disk full, I/O error)
└── BusyError           75   another process holds what this one needs

Each message is one line: what, where, what to do. Anything else that is raised is a bug and keeps
its traceback.
"""


class PipelineError(Exception):
    """An expected failure: one line for the user and an exit code."""

    exit_code = 1


class UsageError(PipelineError):
    exit_code = 2


class BadDataError(PipelineError):
    exit_code = 65


class DamagedError(BadDataError):
    pass


class NoInputError(PipelineError):
    exit_code = 66


class UnreachableError(PipelineError):
    exit_code = 69


class CannotCreateError(PipelineError):
    exit_code = 73


class StorageError(PipelineError):
    exit_code = 74


class BusyError(PipelineError):
    exit_code = 75
