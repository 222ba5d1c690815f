"""Features laid out on a plane, and which pictures to show there."""

import numpy as np
import numpy.typing as npt

MOST_POINTS = 2000  # more only cover each other
PICTURE_COLUMNS, PICTURE_ROWS = 13, 8  # a grid that pictures keep to, so that none overlap

Rows = npt.NDArray[np.int64]
Points = npt.NDArray[np.float64]


def spread_rows(labels: Rows) -> Rows:
    """At most `MOST_POINTS` rows (n,), evenly spread over the classes; ascending."""
    by_class = np.argsort(labels, kind="stable")
    if len(labels) > MOST_POINTS:
        places = np.linspace(0, len(labels) - 1, MOST_POINTS).round().astype(np.int64)
        by_class = by_class[places]
    return np.sort(by_class)


def lay_out(features: npt.NDArray[np.float32]) -> tuple[Points, tuple[float, float]]:
    """Principal component analysis of features (n, D) to two dimensions; needs three rows.

    Returns points (n, 2) in 0 … 1, of which the outermost 1 % may lie a little outside, and the
    share of the variance along each axis.
    """
    from sklearn.decomposition import PCA

    # ARPACK needs a third column
    wide = np.pad(features, ((0, 0), (0, max(0, 3 - features.shape[1]))))
    if (wide == wide[0]).all():
        return np.full((len(wide), 2), 0.5), (0.0, 0.0)
    components = PCA(2, svd_solver="arpack", random_state=0)
    points = components.fit_transform(wide.astype(np.float64))
    first, second = components.explained_variance_ratio_.tolist()
    low, high = np.quantile(points, (0.005, 0.995), axis=0)
    points = (points - low) / np.where(high > low, high - low, 1)
    return points.clip(-0.02, 1.02), (first, second)


def choose_pictures(points: Points) -> tuple[Rows, Points]:
    """Which points (n, 2) to show as pictures: in each cell of a grid the nearest its middle.

    Returns their places in the points (m,), and the middles of their cells (m, 2).
    """
    grid = np.array([PICTURE_COLUMNS, PICTURE_ROWS])
    scaled = points.clip(0, 1 - 1e-9) * grid
    cells = np.floor(scaled)
    distance = np.square(scaled - cells - 0.5).sum(axis=1)
    order = np.argsort(distance, kind="stable")
    _, first = np.unique(cells[order] @ (1, PICTURE_COLUMNS), return_index=True)
    chosen = np.sort(order[first])
    return chosen, (cells[chosen] + 0.5) / grid
