"""Naive Bayes."""

from collections.abc import Iterator

from sklearn.naive_bayes import GaussianNB

from pipeline.heads.head import Candidate, EstimatorClassifier, FitOptions, HeadSpec, Input
from pipeline.heads.training import LabelledRows, TrainingSet

SMOOTHINGS = tuple(10.0**exponent for exponent in range(0, -10, -1))


class NaiveBayes:
    """Each feature an independent Gaussian per class, its variance raised by ``smoothing`` times
    the largest one."""

    default_input: Input = "pooled"

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        for smoothing in SMOOTHINGS:
            estimator = GaussianNB(var_smoothing=smoothing).fit(train.features, train.labels)
            yield Candidate(
                spec=HeadSpec("naive_bayes", {"smoothing": smoothing}),
                classifier=EstimatorClassifier(
                    estimator,
                    parameters=estimator.theta_.size + estimator.var_.size + train.class_count,
                ),
            )
