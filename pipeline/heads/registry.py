"""The table of heads, `HEADS`. A new head needs a function that makes the estimator and an entry.

The entry is enough for ``--heads NAME``, the search on validation, saving, `predict` and `export`,
which takes every head to ONNX, and dense and linear ones to Keras.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.heads.config import DenseConfig, Input
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION

# Each function imports scikit-learn itself: --help needs only the names and stays fast.


def dense() -> Any:
    from pipeline.heads.dense import DenseClassifier

    return DenseClassifier()


def logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    # the default tolerance, 1e-4, stops weak penalties early
    return _scaled(LogisticRegression(tol=1e-8, max_iter=10_000))


def linear_svm() -> Any:
    from sklearn.svm import LinearSVC

    # the primal solver uses no random numbers and stays fast for large C
    return _scaled(LinearSVC(dual=False, tol=1e-6, max_iter=10_000))


def ridge() -> Any:
    from sklearn.linear_model import RidgeClassifier

    return _scaled(RidgeClassifier())


def lda(feature_count: int, class_count: int) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    # The covariance of flattened maps takes gigabytes. PCA with all components only rotates the
    # features, to N columns instead of D.
    rotation = [PCA(svd_solver="full")] if feature_count > MAX_COVARIANCE_FEATURES else []
    return _scaled(*rotation, LinearDiscriminantAnalysis(solver="lsqr"))


def svm_rbf() -> Any:
    from sklearn.decomposition import PCA
    from sklearn.svm import SVC

    return _scaled(PCA(svd_solver="full"), SVC(max_iter=1_000_000))


def knn() -> Any:
    # The length of a feature vector depends on contrast more than on class: on 1,000 cats and dogs
    # (VGG16, pooled), test accuracy is 91 % with Euclidean distances, 96 % with angles.
    from sklearn.neighbors import KNeighborsClassifier

    return _scaled(KNeighborsClassifier(metric="cosine"), with_mean=False)


def prototype() -> Any:
    from sklearn.preprocessing import Normalizer

    from pipeline.heads.prototype import NearestPrototype

    return _scaled(Normalizer(), NearestPrototype(), with_mean=False)


def random_forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    # 400 trees take twice the time and change accuracy by at most 0.2 points
    return _scaled(RandomForestClassifier(200, n_jobs=-1))


def naive_bayes() -> Any:
    from sklearn.naive_bayes import GaussianNB

    return _scaled(GaussianNB())


def majority() -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


def kornblith() -> Any:
    from pipeline.heads.kornblith import KornblithRegression

    return KornblithRegression()


def novelty() -> Any:
    from pipeline.heads.novelty import NoveltyDetector

    return NoveltyDetector()


# Heads of targets: 0 or 1 for each label (N, T), or the numbers of a regression (N,). The mean of
# zeros and ones is a probability, and their variance is half the Gini impurity: one estimator
# serves both tasks.


def dense_sigmoid() -> Any:
    from pipeline.heads.dense import DenseRegressor

    return DenseRegressor(activation="sigmoid")


def dense_linear() -> Any:
    from pipeline.heads.dense import DenseRegressor

    return DenseRegressor()


def one_vs_rest_logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    return _scaled(OneVsRestClassifier(LogisticRegression(tol=1e-8, max_iter=10_000)))


def ridge_regression() -> Any:
    from sklearn.linear_model import Ridge

    return _scaled(Ridge())


def knn_mean() -> Any:
    from sklearn.neighbors import KNeighborsRegressor

    return _scaled(KNeighborsRegressor(metric="cosine"), with_mean=False)


def forest_mean() -> Any:
    from sklearn.ensemble import RandomForestRegressor

    # all features at each split, the default, take 20 times as long
    return _scaled(RandomForestRegressor(200, max_features="sqrt", n_jobs=-1))


def mean() -> Any:
    from sklearn.dummy import DummyRegressor

    return DummyRegressor()


def _scaled(*steps: Any, with_mean: bool = True) -> Any:
    """Return a pipeline of `CommonScaler` and these steps."""
    from sklearn.pipeline import make_pipeline

    from pipeline.heads.scaler import CommonScaler

    return make_pipeline(CommonScaler(with_mean=with_mean), *steps)


@dataclass(frozen=True)
class Head:
    """A family of classifiers; the search selects one setting of its grid on validation.

    Attributes
    ----------
    make : returns an unfitted scikit-learn classifier; takes no arguments, or (feature_count,
        class_count).
    grid : as in `sklearn.model_selection.ParameterGrid`, the most regularised setting first.
    input : flattened or averaged feature maps, by default.
    is_stochastic : the fit depends on the seed. Such heads use all cores.
    calibrate : temperature scaling replaces the head's probabilities, which are too extreme.
    max_rows : maximum number of training rows; of more, a stratified sample is used.
    is_custom : from ``module:factory``; its errors become the status of its row.
    learns_one_class : class 0 alone is enough to train; maps of any size are flattened.
    """

    make: Callable[..., Any]
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]] = ()
    input: Input = "pooled"
    is_stochastic: bool = False
    calibrate: bool = False
    max_rows: int | None = None
    is_custom: bool = False
    learns_one_class: bool = False

    def build(self, feature_count: int, class_count: int) -> Any:
        """Return an unfitted classifier."""
        counts = (feature_count, class_count) if required_arguments(self.make) else ()
        return self.make(*counts)


def required_arguments(factory: Callable[..., Any]) -> int:
    """Return the number of arguments that a factory requires."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # classes written in C may have no signature
        return 0
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(p.default is p.empty and p.kind not in optional for p in parameters)


def _powers_of_ten(first: int, last: int) -> tuple[float, ...]:
    step = 1 if last > first else -1
    return tuple(10.0**exponent for exponent in range(first, last + step, step))


MAX_COVARIANCE_FEATURES = 1536  # eight fits take 6 s for 1,280 features, 30 s for 2,048
SHRINKAGES = (0.99, 0.9, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001)
# 45 penalties, spaced logarithmically, as in SimCLR (Chen et al. 2020, appendix B.8)
L2_PENALTIES = tuple(10.0 ** (5 - step / 4) for step in range(45))

# One core compares a row with 50,000 × 512 in 1 ms. Of 240,000 drawn rows of 100 classes, these
# reach 79.4 %, all rows 81.9 % in 5 ms, and faiss' IVF index with a tenth of its lists 80.2 % in
# 5 ms. The head that is evaluated would also not be the one that is saved and exported.
MAX_NEIGHBOR_ROWS = 50_000

HEADS: dict[str, Head] = {
    "dense": Head(dense, input="flat", is_stochastic=True),
    "logistic": Head(logistic, {"logisticregression__C": _powers_of_ten(-2, 3)}),
    "linear_svm": Head(linear_svm, {"linearsvc__C": _powers_of_ten(-3, 1)}),
    "ridge": Head(ridge, {"ridgeclassifier__alpha": _powers_of_ten(2, -4)}),
    "lda": Head(lda, {"lineardiscriminantanalysis__shrinkage": SHRINKAGES}),
    # The mean squared distance between rows is 2, so gamma = 0.25 is the usual 1 / (2 · median).
    "svm_rbf": Head(
        svm_rbf,
        [{"svc__gamma": [gamma], "svc__C": _powers_of_ten(0, 2)} for gamma in (0.1, 0.25, 0.6)],
        max_rows=10_000,
    ),
    # odd numbers: two classes cannot tie
    "knn": Head(
        knn,
        {"kneighborsclassifier__n_neighbors": (51, 25, 15, 9, 5, 3, 1)},
        max_rows=MAX_NEIGHBOR_ROWS,
    ),
    # angles, then distances: which is better depends on the base
    "prototype": Head(prototype, [{}, {"normalizer": ["passthrough"]}], calibrate=True),
    "random_forest": Head(
        random_forest, {"randomforestclassifier__min_samples_leaf": (5, 1)}, is_stochastic=True
    ),
    "naive_bayes": Head(naive_bayes, {"gaussiannb__var_smoothing": _powers_of_ten(0, -9)}),
    "majority": Head(majority),
    "kornblith": Head(kornblith, {"l2": L2_PENALTIES}),
}

# of comparisons of normal images with all others
NOVELTY_HEADS: dict[str, Head] = {
    "novelty": Head(
        novelty, input="flat", is_stochastic=True, calibrate=True, learns_one_class=True
    ),
}

# the book's, and those that fit a few hundred images within its 30 epochs
LEARNING_RATES = (DenseConfig.learning_rate, 2e-4, 2e-3)
_NEIGHBORS = {"kneighborsregressor__n_neighbors": (51, 25, 15, 9, 5, 3, 1)}
_LEAVES = {"randomforestregressor__min_samples_leaf": (5, 1)}
_SHARED: dict[str, Head] = {
    "ridge": Head(ridge_regression, {"ridge__alpha": _powers_of_ten(2, -4)}),
    "knn": Head(knn_mean, _NEIGHBORS, max_rows=MAX_NEIGHBOR_ROWS),
    "random_forest": Head(forest_mean, _LEAVES, is_stochastic=True),
}
TARGET_HEADS: dict[str, dict[str, Head]] = {
    MULTILABEL: {
        "dense": Head(dense_sigmoid, input="flat", is_stochastic=True),
        "logistic": Head(
            one_vs_rest_logistic, {"onevsrestclassifier__estimator__C": _powers_of_ten(-2, 3)}
        ),
        **_SHARED,
        "prevalence": Head(mean),
    },
    REGRESSION: {
        "dense": Head(dense_linear, input="flat", is_stochastic=True),
        **_SHARED,
        "mean": Head(mean),
    },
}


def load_head(
    name: str, dense: Sequence[DenseConfig] = (DenseConfig(),), task: str = CLASSES
) -> Head:
    """Return a head of the task's table, or the custom head ``module:factory``.

    ``dense`` is the grid of the dense head; its first epochs and batch size also apply to custom
    Keras models. For targets it includes higher learning rates than the book's default, unless it
    has others. Raises UsageError if a custom module or factory is missing.
    """
    heads = HEADS if task == CLASSES else TARGET_HEADS[task]
    if name == "dense":
        if task != CLASSES and all(each.learning_rate == LEARNING_RATES[0] for each in dense):
            dense = [replace(each, learning_rate=rate) for each in dense for rate in LEARNING_RATES]
        ordered = sorted(dense, key=lambda each: (-each.dropout, each.units, each.learning_rate))
        grid = [{key: [value] for key, value in config.changed().items()} for config in ordered]
        return replace(heads[name], grid=grid)
    if name in heads:
        return heads[name]
    if name in NOVELTY_HEADS:
        return NOVELTY_HEADS[name]
    from pipeline.heads.custom import load_custom_head

    return load_custom_head(name, epochs=dense[0].epochs, batch_size=dense[0].batch_size, task=task)
