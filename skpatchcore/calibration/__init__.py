"""Thresholds for outlier detectors: calibrated, or tuned.

`ConformalDetector` needs held-out normal samples and gives p-values and a threshold
with a stated false-alarm rate. `TunedThresholdDetector` needs labelled defects and
gives the threshold that fits them best. Both wrap any outlier detector; around a
detector of images they also calibrate, or pass on, its maps.
"""

from skpatchcore.calibration._conformal import ConformalDetector
from skpatchcore.calibration._tuned_threshold import TunedThresholdDetector

__all__ = ["ConformalDetector", "TunedThresholdDetector"]

# For other folders of this package.
from skpatchcore.calibration._held_out import scoring_part as scoring_part
from skpatchcore.calibration._out_of_sample import FlaggedShare as FlaggedShare
from skpatchcore.calibration._out_of_sample import held_out_share as held_out_share
from skpatchcore.calibration._out_of_sample import percent as percent
from skpatchcore.calibration._out_of_sample import rate_range as rate_range
from skpatchcore.calibration._out_of_sample import (
    share_of_other_half as share_of_other_half,
)
from skpatchcore.calibration._out_of_sample import tuned_shares as tuned_shares
from skpatchcore.calibration._p_values import Calibration as Calibration
from skpatchcore.calibration._p_values import anomaly_score as anomaly_score
from skpatchcore.calibration._p_values import check_supported as check_supported
from skpatchcore.calibration._p_values import n_needed as n_needed
from skpatchcore.calibration._p_values import n_supported as n_supported
from skpatchcore.calibration._p_values import round_up as round_up
