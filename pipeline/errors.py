"""The expected failures, with their exit codes.

PipelineError
├── UsageError           2   the command line is not valid
├── BadDataError        65   the data exists, but is not as expected
│   └── DamagedError    65   a cache has changed since it was written: repair it
├── NoInputError        66   the data does not exist
├── UnreachableError    69   a host or a package is missing
├── CannotCreateError   73   the output cannot be created at the requested path
├── StorageError        74   reading or writing failed (disk full, I/O error)
└── BusyError           75   another process has locked the file

Each message is one line: place, expected, received, cure. Any other exception is a bug and keeps
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
