"""The one error that means "what you gave is wrong", and those of several processes."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that names the argument, file or line, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class SharedError(InputError):
    """Bad input that every process of a run knows of, so that the first one alone need report it."""


class PeerError(RuntimeError):
    """Another process of the run failed or died."""
