"""Locks that a forked process finds free."""

import os
import threading


class ForkSafeLock:
    """A re-entrant lock for the state of a module, free in a process that was forked.

    A fork copies a lock as it is, but of the threads only the one that forks: what
    another thread held would never be released in the child. There every such lock is
    made anew. It lives as long as its process, so make one for a module, not for an
    object.
    """

    def __init__(self):
        self._renew()
        # Windows has no fork.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for the lock and take it, as `threading.RLock.acquire` does."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exception) -> None:
        self._lock.release()
