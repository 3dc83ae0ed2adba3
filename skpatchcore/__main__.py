"""``python -m skpatchcore`` is the command ``skpatchcore``."""

from skpatchcore._cli import main

if __name__ == "__main__":
    main(prog_name="skpatchcore")
