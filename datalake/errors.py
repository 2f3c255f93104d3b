"""What a user can do something about."""

from __future__ import annotations


class UserError(ValueError):
    """An input, a setting or a state of things that a user can change; the message says what, where, and what to do.

    Commands print it and end with status 2. Everything else is a bug, and shows its traceback.
    """
