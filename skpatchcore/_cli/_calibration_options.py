"""Options of ``skpatchcore fit`` for the threshold: calibrated, or tuned on defects."""

from typing import Any, NamedTuple

import click

from skpatchcore._cli._options import group_options, is_given, option, option_group
from skpatchcore._cli._types import Rate

# One detector scores as fast as an uncalibrated one, and in a file of the same size.
DEFAULT_CALIBRATION = "refit"
_FOLDER = click.Path(exists=True, file_okay=False)

calibration_options = option_group(
    option(
        "--alpha",
        type=Rate(),
        metavar="SHARE",
        help="Calibrate the threshold for this false-alarm rate: the share of new good "
        "images that it may flag. 0.05 needs at least 19 good images, 0.01 needs 99.",
    ),
    option(
        "--calibration",
        type=click.Choice(["refit", "cross", "split", "jackknife+"]),
        help="How to calibrate. refit and cross score each image of TRAIN with one of "
        "5 detectors that was not fitted on it; for new images, refit fits one more "
        "detector on all images, and cross keeps all 5, which makes scoring 5 times "
        "slower. jackknife+ is as cross, with a detector for each image. split fits on "
        f"one half and calibrates on the other.  [default: {DEFAULT_CALIBRATION}]",
    ),
    option(
        "--calibration-images",
        metavar="FOLDER",
        type=_FOLDER,
        help="Images of good parts for the threshold alone: the detector is fitted on "
        "TRAIN, and --alpha holds for images like those in FOLDER.",
    ),
    option(
        "--defective",
        metavar="FOLDER",
        type=_FOLDER,
        help="Images of defective parts. The threshold is the one with the best F1 for "
        "them and the images of TRAIN. It is an alternative to --alpha.",
    ),
    group_options,
)


class ThresholdOptions(NamedTuple):
    """How the threshold is set. Without `alpha` and `defective`: by the detector."""

    alpha: float | None = None
    calibration: str | None = None
    calibration_images: str | None = None
    defective: str | None = None

    def check(self) -> None:
        """Raise if options contradict each other, or one of them has no effect."""
        if self.alpha is not None and self.defective is not None:
            raise click.UsageError(
                "--alpha and --defective would both set the threshold: --alpha for a "
                "false-alarm rate, --defective for the best F1. Pass one of them."
            )
        if self.alpha is None:
            self._refuse_without_alpha()
        elif is_given("contamination"):
            raise click.UsageError(
                "--contamination has no effect with --alpha, which sets the threshold. "
                "Pass one of them."
            )
        if self.calibration is not None and self.calibration_images is not None:
            raise click.UsageError(
                f"--calibration {self.calibration} says how the images of TRAIN "
                "calibrate, but --calibration-images takes others. Pass one of them."
            )

    def _refuse_without_alpha(self) -> None:
        for name in ("calibration", "calibration_images"):
            if getattr(self, name) is not None:
                shown = f"--{name.replace('_', '-')}"
                raise click.UsageError(
                    f"{shown} needs --alpha, the false-alarm rate to calibrate for, "
                    f"such as --alpha 0.05. Add it, or remove {shown}."
                )


def take_threshold_options(settings: dict[str, Any]) -> ThresholdOptions:
    """Remove the options for the threshold from `settings`, check and return them."""
    taken = {name: settings.pop(name) for name in ThresholdOptions._fields}
    options = ThresholdOptions(**taken)
    options.check()
    return options
