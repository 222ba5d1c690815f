"""A fine-tuned model: a base's layers above the freeze boundary, as trained, and a dense head.

It takes the boundary's feature maps, as they are cached, and stands alone: it holds every weight
above the boundary, those that fine-tuning leaves as they are (BatchNorm's) included.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.registry import Base
from pipeline.heads.dense import DenseClassifier
from pipeline.heads.head import Classifier, Floats
from pipeline.heads.minibatch import Array, Weights
from pipeline.models.classifiers import Arrays, ForeignClassifier, UnsavableError, pack, unpack

if TYPE_CHECKING:
    from pipeline.bases.boundary import Boundary
    from pipeline.models.upper_layers import UpperLayers


@dataclass(frozen=True)
class TopBlockClassifier:
    """The upper layers of a base and the head behind them.

    Attributes
    ----------
    base, image_size, boundary : the layers are those that follow the layer ``boundary`` in that
        base at that size.
    block : their weights by name, ``block5_conv1/kernel``; float32, in Keras' shapes.
    hidden_kernel, hidden_bias, output_kernel, output_bias : the head, as in
        `pipeline.heads.minibatch.Weights`.
    """

    base: str
    image_size: int
    boundary: str
    block: Mapping[str, Array]
    hidden_kernel: Array
    hidden_bias: Array
    output_kernel: Array
    output_bias: Array
    has_probabilities: bool = True

    @property
    def head(self) -> DenseClassifier:
        """What follows the base's last layer."""
        return DenseClassifier(*(getattr(self, name) for name in Weights._fields))

    @property
    def parameters(self) -> int:
        """Of the layers above the boundary and of the head."""
        return sum(each.size for each in self.block.values()) + self.head.parameters

    def scores(self, features: Floats) -> npt.NDArray[np.float64]:
        """(N, H·W·C) float32 -> (N, K) float64; the first call loads TensorFlow.

        Every batch is padded to one size, so that no image's scores depend on how many stand
        beside it.

        Raises ForeignClassifier if the base has no such layers, or the head does not fit them.
        """
        return np.concatenate(
            [self.head.scores(values)[:count] for values, count in self._upper.batches(features)]
        )

    @cached_property
    def _upper(self) -> "UpperLayers":
        from pipeline.models.upper_layers import UpperLayers  # only now: it loads TensorFlow

        upper = UpperLayers(self.base, self.image_size, self.boundary, self.block)
        if upper.width != len(self.hidden_kernel):
            raise ForeignClassifier(
                f"its head takes {len(self.hidden_kernel):,} features; the layers before it give "
                f"{upper.width:,}"
            )
        return upper


def top_block(
    base_model: Any,
    base: Base,
    image_size: int,
    boundary: "Boundary",
    weights: Mapping[str, Array],
    class_count: int,
) -> Classifier:
    """What was fine-tuned, as it will come back from the disk.

    Parameters
    ----------
    base_model : the base that it was trained in; what was not trained is taken from it.
    weights : of `pipeline.finetuning.result.Trained`: all that was trained, by name.

    Raises UnsavableError if it does not stand alone: layers above the boundary depend on more than
    their weights.
    """
    untrained = {
        variable.path: variable.numpy()
        for name in boundary.unfrozen
        for variable in base_model.get_layer(name).weights
    }
    block = {name: weights.get(name, value) for name, value in untrained.items()}
    head = Weights(*(weights[f"head/{name}"] for name in Weights._fields))
    made = TopBlockClassifier(base.name, image_size, boundary.layer, block, *head)
    arrays: Arrays = {}
    try:
        return unpack(
            pack(made, arrays),
            arrays,
            feature_count=math.prod(boundary.shape),
            class_count=class_count,
            given={"base": base.name, "image_size": image_size, "boundary": boundary.layer},
        )
    except ForeignClassifier as error:
        raise UnsavableError(
            f"{base.name} fine-tuned above {boundary.layer} does not stand alone ({error}): "
            f"unfreeze fewer layers"
        ) from error
