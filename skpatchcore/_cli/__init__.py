"""The command ``skpatchcore`` with its subcommands demo, benchmark, fit and score.

This folder turns options into parameters, and results into files and text; it computes
nothing itself. Only click is imported until a subcommand runs, so that ``--help``
answers at once.
"""

from skpatchcore._cli._commands import main

__all__ = ["main"]
