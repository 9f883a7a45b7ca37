"""The one error that means "what you gave is wrong"."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that names the argument, file or line, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
