"""The command ``skpatchcore``.

Only click is imported until a command runs, so that ``--help`` answers at once.
"""

from skpatchcore._cli._commands import main

__all__ = ["main"]
