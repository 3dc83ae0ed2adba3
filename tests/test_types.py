"""What type checkers see of the public interface."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SNIPPET = """
from typing import Any, assert_type
import numpy as np
from numpy.typing import NDArray
from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.metrics import image_auroc, pixel_auroc
from skpatchcore.persistence import load
from skpatchcore.scoring import UnreadableImage, find_unreadable

X = np.zeros((4, 8, 8, 3), dtype=np.uint8)
detector = PatchCoreDetector()
assert_type(detector.fit(X), PatchCoreDetector)
assert_type(detector.score_samples(X), NDArray[np.float64])
assert_type(detector.predict(X), NDArray[np.int64])
assert_type(detector.predict_maps(X), NDArray[Any] | list[NDArray[Any]])
assert_type(detector.predict_masks(X), NDArray[Any] | list[NDArray[Any]])
for seen in detector.inspect(X):
    assert_type(seen.score, float)
    assert_type(seen.p_value, float | None)
    assert_type(seen.mask, NDArray[np.bool_])
ensemble = PatchCoreEnsemble([("one", detector)])
assert_type(ensemble.fit(X, groups=[0, 0, 1, 1]), PatchCoreEnsemble)
conformal = ConformalDetector(detector)
assert_type(conformal.fit(X), ConformalDetector)
assert_type(conformal.predict_pvalue(X), NDArray[np.float64])
tuned = TunedThresholdDetector(detector)
assert_type(tuned.fit(X, [1, 1, 1, -1]), TunedThresholdDetector)
loaded = load("model.skpc")
assert_type(
    loaded,
    PatchCoreDetector
    | PatchCoreEnsemble
    | PatchMemoryBank
    | ConformalDetector
    | TunedThresholdDetector,
)
assert_type(find_unreadable(X), list[UnreadableImage])
assert_type(image_auroc([1, -1], [0.1, 0.9]), float)
assert_type(pixel_auroc([None], [np.zeros((8, 8))]), float)
reveal_type(detector.fit(X))
"""
# Parsing torch takes longer than everything else, and no public type is one of its.
CONFIG = """
[mypy]
python_version = 3.11
ignore_missing_imports = True
follow_imports = silent
[mypy-torch.*,timm.*,PIL.*]
follow_imports = skip
"""


def check(snippet: str, folder: Path, cache: Path) -> list[str]:
    """Return what mypy says of a snippet, line by line."""
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    path, config = folder / "snippet.py", folder / "mypy.ini"
    path.write_text(snippet, "utf-8")
    config.write_text(CONFIG, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", str(ROOT))
        report, errors, _ = api.run(
            [str(path), f"--config-file={config}", f"--cache-dir={cache}"]
        )
    assert errors == ""
    return report.splitlines()


def test_the_package_is_marked_as_typed():
    assert (ROOT / "skpatchcore" / "py.typed").exists()


def test_public_results_have_the_types_they_state(tmp_path, pytestconfig):
    report = check(SNIPPET, tmp_path, pytestconfig.cache.mkdir("mypy"))
    assert [line for line in report if ": error:" in line] == []
    # If the package could not be analysed, everything would be Any.
    (revealed,) = [line for line in report if ": note:" in line]
    assert re.search(r'Revealed type is "skpatchcore\..*\.PatchCoreDetector"', revealed)
