"""Heat maps: where in an image the evidence for a class lies, from its feature maps."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Heatmap:
    """The evidence for a class at each position of an image's feature maps.

    Attributes
    ----------
    label : the class.
    values : (H, W) float32; positive ones are evidence for the class, negative ones against it.
    method : how they were computed, one of `pipeline.models.config.METHODS`.
    """

    label: str
    values: npt.NDArray[np.float32]
    method: str
