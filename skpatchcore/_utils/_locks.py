"""Locks that are free in a forked process."""

import os
import threading
from typing import Any


def fork_safe_lock() -> "threading.RLock":
    """Return a re-entrant lock that is free in a forked process.

    A fork copies the state of every lock, but only the thread that forks. So a lock
    that another thread held would never be released in the child. The lock stays
    registered for the lifetime of the process: create one per module, not per object.
    """
    lock = threading.RLock()
    # `logging` uses these private methods in the same way; type stubs lack them.
    private: Any = lock

    def renew() -> None:
        # The lock is reset in place. A wrapper in Python whose lock could be replaced
        # might stay locked if an interrupt arrives as it is released.
        if not private._is_owned():
            private._at_fork_reinit()

    # Windows has no fork.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
    return lock
