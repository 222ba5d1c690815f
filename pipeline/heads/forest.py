"""Random forest."""

from collections.abc import Iterator

from sklearn.ensemble import RandomForestClassifier

from pipeline.heads.head import Candidate, EstimatorClassifier, FitOptions, HeadSpec, Input
from pipeline.heads.training import LabelledRows, TrainingSet

TREES = 200  # half the time of 400, the same accuracy within 0.2 points


class RandomForest:
    """Trees on bootstrap samples, each split the best of √D random features."""

    default_input: Input = "pooled"

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        for leaf in (5, 1):
            estimator = RandomForestClassifier(
                n_estimators=TREES, min_samples_leaf=leaf, n_jobs=-1, random_state=options.seed
            ).fit(train.features, train.labels)
            estimator.n_jobs = 1  # threads would add up the trees in an order of chance
            yield Candidate(
                spec=HeadSpec("random_forest", {"trees": TREES, "leaf": leaf}),
                classifier=EstimatorClassifier(
                    estimator, parameters=sum(tree.tree_.node_count for tree in estimator)
                ),
            )
