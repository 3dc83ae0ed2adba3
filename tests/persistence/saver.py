"""What the processes do that tests of `save` kill."""

import itertools

from skpatchcore.persistence import save


def save_forever(detectors, path, started) -> None:
    """Save one detector over the other, again and again."""
    for detector in itertools.cycle(detectors):
        started.set()
        save(detector, path)
