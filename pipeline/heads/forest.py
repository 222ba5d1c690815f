"""Random forest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier

from pipeline.heads.blocks import ROWS_PER_BLOCK
from pipeline.heads.head import Candidate, FitOptions, Floats, Head, HeadSpec
from pipeline.heads.training import LabelledRows, TrainingSet

TREES = 200  # half the time of 400, the same accuracy within 0.2 points
STEPS_PER_BLOCK = 2**21  # trees times rows, some 60 bytes each; 200 trees take whole blocks of rows
LEAF = -1  # what scikit-learn has for the child of a leaf


@dataclass(frozen=True)
class ForestClassifier:
    """The mean over trees of the training shares of the classes in the leaf that a row comes to.

    All trees' nodes stand in one list, each before its children.

    Attributes
    ----------
    roots : (T,) int32, the first node of each tree.
    children : (N, 2) int32, where to go with a value up to the threshold and above it; a leaf is
        its own child.
    features : (N,) int32, which value that is.
    thresholds : (N,) float64.
    shares : (N, K) float64, of the classes among a node's training rows.
    """

    roots: npt.NDArray[np.int32]
    children: npt.NDArray[np.int32]
    features: npt.NDArray[np.int32]
    thresholds: npt.NDArray[np.float64]
    shares: npt.NDArray[np.float64]
    has_probabilities: bool = True

    @classmethod
    def of(cls, forest: RandomForestClassifier) -> Self:
        """The trees of a fitted forest."""
        trees = [each.tree_ for each in forest.estimators_]
        sizes = [tree.node_count for tree in trees]
        starts = np.cumsum([0, *sizes])
        tree_starts = np.repeat(starts[:-1], sizes)[:, None]
        pairs = np.concatenate([np.c_[tree.children_left, tree.children_right] for tree in trees])
        nodes = np.arange(starts[-1])[:, None]
        features = np.concatenate([tree.feature for tree in trees])
        return cls(
            roots=starts[:-1].astype(np.int32),
            children=np.where(pairs == LEAF, nodes, pairs + tree_starts).astype(np.int32),
            features=np.maximum(features, 0).astype(np.int32),  # a leaf has none
            thresholds=np.concatenate([tree.threshold for tree in trees]),
            shares=np.concatenate([tree.value[:, 0] for tree in trees]),
        )

    @property
    def parameters(self) -> int:
        return len(self.features)

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        rows = max(1, min(ROWS_PER_BLOCK, STEPS_PER_BLOCK // len(self.roots)))
        starts = range(0, max(len(features), 1), rows)
        return np.concatenate([self._mean_shares(features[at : at + rows]) for at in starts])

    def _mean_shares(self, features: Floats) -> npt.NDArray[np.float64]:
        count = len(features)
        values = np.ascontiguousarray(features, np.float32).ravel()  # as scikit-learn compares
        at = np.repeat(self.roots[:, None], count, axis=1).ravel()  # node by (tree, row)
        places = np.arange(len(at))
        starts = np.tile(np.arange(count) * features.shape[1], len(self.roots))
        children = self.children.ravel()
        while len(places):
            nodes = at[places]
            above = values[starts[places] + self.features[nodes]] > self.thresholds[nodes]
            after = children[2 * nodes + above]
            at[places] = after
            places = places[after != nodes]
        total = np.zeros((count, self.shares.shape[1]))
        for leaves in at.reshape(len(self.roots), count):  # added in scikit-learn's order
            total += self.shares[leaves]
        total /= len(self.roots)
        return np.asarray(total / total.sum(axis=1, keepdims=True))


class RandomForest(Head):
    """Trees on bootstrap samples, each split the best of √D random features."""

    draws: ClassVar[bool] = True
    uses_all_cores: ClassVar[bool] = True

    def fit_candidates(
        self, train: TrainingSet, validation: LabelledRows, options: FitOptions
    ) -> Iterator[Candidate]:
        settings = [{"trees": TREES, "leaf": leaf} for leaf in (5, 1)]
        for params in filter(options.wants, settings):
            for seed in options.seeds:
                forest = RandomForestClassifier(
                    n_estimators=params["trees"],
                    min_samples_leaf=params["leaf"],
                    class_weight="balanced" if train.balanced else None,
                    n_jobs=-1,
                    random_state=seed,
                ).fit(train.features, train.labels)
                yield Candidate(
                    spec=HeadSpec("random_forest", params),
                    classifier=ForestClassifier.of(forest),
                    seed=seed,
                )
