"""The command ``skpatchcore``.

Only click is imported until a command runs, so that ``--help`` answers at once.
"""

__all__ = []
