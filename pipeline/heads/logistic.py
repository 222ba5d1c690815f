"""L2-regularised logistic regression: a short grid, and the protocol of Kornblith et al. (2019)."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from pipeline.heads.linear import LinearFit, LinearHead
from pipeline.heads.training import TrainingSet

MOST_ITERATIONS = 10_000  # of one setting; photographs take 2 to 180
TOLERANCE = 1e-8  # of the gradient of the mean log loss, on scaled features
# ... and this share of the penalty: a weak one moves the weights far along gradients below 1e-8
PENALTY_SHARE = 1e-3
STEPS_REMEMBERED = 30  # two thirds of the iterations that SciPy's 10 take

Array = npt.NDArray[np.float64]


def fit_path(train: TrainingSet, penalties: Sequence[float]) -> Iterator[LinearFit]:
    """Minimise mean log loss + penalty / 2 · ‖weights‖² by L-BFGS, one penalty after another.

    Each starts from the weights of the one before. Intercepts go free. Two classes share one
    weight vector (sigmoid), more have one each (softmax), as in scikit-learn, whose C is
    1 / (N · penalty). SciPy's solver is called directly, because scikit-learn tells only by
    warnings, which threads share, whether it converged.
    """
    rows = train.coordinates
    truth = (train.labels[:, None] == np.arange(train.class_count)).astype(np.float64)  # (N, K)
    if train.class_count == 2:
        truth = truth[:, 1:]
    row_weights = train.row_weights[:, None] / len(train)
    found = np.zeros((truth.shape[1], rows.shape[1] + 1))  # intercepts in the last column
    for penalty in penalties:
        tolerance = min(TOLERANCE, PENALTY_SHARE * penalty)
        result = minimize(
            _objective,
            found.ravel(),
            args=(rows, truth, row_weights, penalty),
            jac=True,
            method="L-BFGS-B",
            options={
                "gtol": tolerance,
                "ftol": 0,  # as long as it falls: SciPy's is absolute, and losses may be near 0
                "maxcor": STEPS_REMEMBERED,
                "maxls": 50,  # in one line search; 20 do not always find float64's last steps
                "maxiter": MOST_ITERATIONS,
                "maxfun": 10 * MOST_ITERATIONS,
            },
        )
        found = result.x.reshape(found.shape)
        # below such a slope, rounding hides whether the objective falls: it is at its end as well
        hidden = np.abs(result.jac).max() <= np.sqrt(np.finfo(np.float64).eps * result.fun)
        yield LinearFit(found[:, :-1], found[:, -1], converged=bool(result.success or hidden))


def _objective(
    flat: Array, rows: Array, truth: Array, row_weights: Array, penalty: float
) -> tuple[float, Array]:
    """The penalised loss of weights and intercepts, and its gradient, (K · (D + 1),) both."""
    parameters = flat.reshape(truth.shape[1], -1)
    weights = parameters[:, :-1]
    decisions = rows @ weights.T + parameters[:, -1]
    if truth.shape[1] == 1:
        losses, probabilities = np.logaddexp(0, decisions) - truth * decisions, expit(decisions)
    else:
        logs = log_softmax(decisions, axis=1)
        losses, probabilities = -truth * logs, np.exp(logs)
    errors = row_weights * (probabilities - truth)
    gradient = np.empty_like(parameters)
    gradient[:, :-1] = errors.T @ rows + penalty * weights
    gradient[:, -1] = errors.sum(axis=0)
    return float((row_weights * losses).sum() + penalty / 2 * (weights**2).sum()), gradient.ravel()


class Logistic(LinearHead):
    """L2-regularised logistic regression, C as in scikit-learn."""

    name = "logistic"
    param = "C"
    grid = tuple(10.0**exponent for exponent in range(-2, 4))
    has_probabilities = True

    def path(self, train: TrainingSet, values: Sequence[float]) -> Iterator[LinearFit]:
        return fit_path(train, [1 / (C * len(train)) for C in values])


class Kornblith(LinearHead):
    """Logistic regression as Kornblith et al. (2019, "Do better ImageNet models transfer better?")
    compare bases: 45 penalties λ, spaced logarithmically from 1e5 to 1e-6.

    The grid as in SimCLR (Chen et al. 2020, appendix B.8). λ is the weight of ½‖w‖² beside the
    *mean* log loss, so scikit-learn's C is 1 / (N · λ), and w belongs to the features as they are
    cached. Dividing them by a scale s multiplies w by s: on scaled features the penalty is λ / s².
    """

    name = "kornblith"
    param = "lambda"
    grid = tuple(10.0 ** (5 - step / 4) for step in range(45))
    has_probabilities = True

    def path(self, train: TrainingSet, values: Sequence[float]) -> Iterator[LinearFit]:
        return fit_path(train, [value / train.scaler.scale**2 for value in values])
