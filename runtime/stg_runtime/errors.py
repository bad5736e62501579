"""Errors that a command turns into one line and an exit code."""


class StgError(Exception):
    """Something went wrong that is not the user's input; commands exit with code 1.

    The message is one line: what, where, got, expected, and the fix.
    """

    exit_code = 1


class InputError(StgError):
    """A file, option or value that the user gave cannot be used; commands exit with code 2."""

    exit_code = 2


class DivergenceError(StgError):
    """An energy or a chain became non-finite or exploded."""
