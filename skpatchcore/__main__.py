"""Run the command ``skpatchcore`` as ``python -m skpatchcore``."""

from skpatchcore._cli import main

if __name__ == "__main__":
    main(prog_name="skpatchcore")
