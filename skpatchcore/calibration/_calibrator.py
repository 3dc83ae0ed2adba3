"""What detectors have in common that set the threshold of another one."""

from typing import Any

from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping

from skpatchcore._detectors import ImageDetector
from skpatchcore._utils import HasMethods


class Calibrator(MetaEstimatorMixin, ImageDetector, BaseEstimator):
    """A detector with the parameters `estimator` and `cv`."""

    estimator: Any
    cv: Any

    _parameter_constraints: dict[str, list] = {
        "estimator": [
            HasMethods(["fit", "score_samples"]),
            HasMethods(["fit", "decision_function"]),
        ],
        "cv": ["cv_object"],
    }

    # Groups decide how rows are held out and weighed here, not only in the splitter: in
    # searches with metadata routing they come without a request of the user's.
    __metadata_request__fit = {"groups": True}

    def get_metadata_routing(self) -> MetadataRouter:
        """Return which metadata the detector, its estimator and its splitter take.

        Returns
        -------
        routing : MetadataRouter
            The detector itself asks for ``groups``.
        """
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                estimator=self._estimator_to_fit(),
                method_mapping=MethodMapping().add(caller="fit", callee="fit"),
            )
            .add(
                splitter=self.cv,
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
        )

    def _estimator_to_fit(self) -> Any:
        """Return the estimator whose clones are fitted."""
        return self.estimator

    def _adopt_features(self, fitted: Any) -> None:
        """Take over the number and names of features from a fitted estimator."""
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags
