"""Features laid out on a plane, and which pictures to show there."""

import numpy as np
import numpy.typing as npt

MOST_POINTS = 2000  # more only cover each other
PICTURE_COLUMNS, PICTURE_ROWS = 13, 8  # a grid that pictures keep to, so that none overlap

Rows = npt.NDArray[np.int64]
Points = npt.NDArray[np.float64]


def spread_rows(rows: Rows, labels: npt.NDArray[np.int64]) -> Rows:
    """At most `MOST_POINTS` of the rows, evenly spread over the classes; ascending."""
    if len(rows) <= MOST_POINTS:
        return rows
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    places = np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(np.int64)
    return np.sort(by_class[places])


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


def choose_pictures(points: Points) -> Rows:
    """Places in the points of those to show as pictures: of each cell the nearest its middle."""
    grid = np.array([PICTURE_COLUMNS, PICTURE_ROWS])
    scaled = points.clip(0, 1 - 1e-9) * grid
    cells = np.floor(scaled)
    distance = np.square(scaled - cells - 0.5).sum(axis=1)
    order = np.argsort(distance, kind="stable")
    _, first = np.unique(cells[order] @ (1, PICTURE_COLUMNS), return_index=True)
    return np.sort(order[first])


def cell_middle(point: Points) -> tuple[float, float]:
    """The middle, in 0 … 1, of the grid cell that holds a point."""
    grid = np.array([PICTURE_COLUMNS, PICTURE_ROWS])
    x, y = (np.floor(point.clip(0, 1 - 1e-9) * grid) + 0.5) / grid
    return float(x), float(y)
