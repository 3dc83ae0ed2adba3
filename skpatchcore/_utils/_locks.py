"""Locks that a forked process finds free."""

import os
import threading


def fork_safe_lock() -> "threading.RLock":
    """Return a re-entrant lock for a module, free in a process that was forked.

    A fork copies a lock as it is, but of the threads only the one that forks: what
    another thread held would never be released in the child. It stays registered as
    long as the process lives, so make one for a module, not for an object.
    """
    lock = threading.RLock()

    def renew() -> None:
        # As the locks of `logging` do. A lock in Python around this one, which could be
        # replaced instead, might be left held by an interrupt at its exit.
        if not lock._is_owned():
            lock._at_fork_reinit()

    # Windows has no fork.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
    return lock
