"""Thresholds with a stated false-alarm rate, and p-values, from normal samples only."""

from skpatchcore.calibration._conformal import ConformalDetector
from skpatchcore.calibration._tuned_threshold import TunedThresholdDetector

__all__ = ["ConformalDetector", "TunedThresholdDetector"]

# For other folders of this package.
from skpatchcore.calibration._p_values import Calibration as Calibration
from skpatchcore.calibration._p_values import anomaly_score as anomaly_score
from skpatchcore.calibration._p_values import n_supported as n_supported
