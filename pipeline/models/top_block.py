"""A fine-tuned model: a base's trained layers above the freeze boundary, and a dense head.

Its input is the cached feature maps of the boundary. It contains every weight above the boundary,
also those that fine-tuning does not change (BatchNorm's).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from pipeline.bases.registry import Base
from pipeline.heads.config import DenseConfig
from pipeline.heads.dense import DenseClassifier
from pipeline.models.estimator_validation import InvalidModelError
from pipeline.models.serialization import UnsavableError

if TYPE_CHECKING:
    from pipeline.bases.boundary import Boundary

HEAD_WEIGHTS = ("hidden_kernel", "hidden_bias", "output_kernel", "output_bias")

Array = npt.NDArray[np.float32]


class TopBlockClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The layers of a base after the layer ``boundary``, and the dense head after them.

    ``block`` maps names (``block5_conv1/kernel``) to weights, float32 in Keras' shapes. The layers
    of a base in a file come from ``_file``, which is not saved.
    """

    _file = ""

    def __init__(
        self,
        base: str,
        image_size: int,
        boundary: str,
        block: Mapping[str, Array],
        head: DenseClassifier,
    ) -> None:
        self.base = base
        self.image_size = image_size
        self.boundary = boundary
        self.block = block
        self.head = head

    @property
    def classes_(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.head.classes_)

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the layers above the boundary and of the head."""
        return sum(array.size for array in (*self.block.values(), *self.head.weights_))

    def find_layers_in(self, file: str) -> None:
        """Use the layers of a base in a file; of a named base (``""``), those of its network."""
        self._file = file

    def predict_proba(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Compute probabilities: (N, H·W·C) float32 -> (N, K) float64; loads TensorFlow once.

        Raises InvalidModelError if the layers do not fit the base, or the head does not fit them.
        """
        return self._apply(self.head.predict_proba, X)

    def decision_function(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Compute logits: (N, H·W·C) float32 -> (N, K), or (N,), float64."""
        return self._apply(self.head.decision_function, X)

    def _apply(
        self, method: Callable[[Array], npt.NDArray[np.float64]], X: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        """Apply a method of the head to the outputs of the layers.

        Every batch is padded to one size, so that an image's probabilities do not depend on others.
        """
        if not hasattr(self, "_upper"):
            from pipeline.models.upper_layers import UpperLayers

            base = self._file or self.base
            self._upper = UpperLayers(base, self.image_size, self.boundary, self.block)
            if self._upper.width != self.head.n_features_in_:
                raise InvalidModelError(
                    f"its head takes {self.head.n_features_in_:,} features; its layers give "
                    f"{self._upper.width:,}"
                )
        batches = self._upper.batches(np.asarray(X, np.float32))
        return np.concatenate([method(values)[:count] for values, count in batches])

    def predict(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        return np.asarray(self.predict_proba(X).argmax(axis=1))

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_upper", "_file")}


def dense_classifier(weights: Mapping[str, Array], class_count: int, config: DenseConfig) -> Any:
    """Return the fitted `DenseClassifier` of weights named ``head/hidden_kernel``, …"""
    head = DenseClassifier(**config.changed())
    head.weights_ = [np.asarray(weights[f"head/{name}"]) for name in HEAD_WEIGHTS]
    head.n_features_in_ = len(head.weights_[0])
    head.classes_ = np.arange(class_count)
    return head


def top_block(
    base_model: Any,
    base: Base,
    image_size: int,
    boundary: "Boundary",
    weights: Mapping[str, Array],
    class_count: int,
    config: DenseConfig,
) -> TopBlockClassifier:
    """Build a fine-tuned classifier; weights that were not trained are those of ``base_model``.

    Raises UnsavableError if layers above the boundary depend on more than their weights.
    """
    untrained = {
        variable.path: variable.numpy()
        for name in boundary.unfrozen
        for variable in base_model.get_layer(name).weights
    }
    block = {name: weights.get(name, value) for name, value in untrained.items()}
    head = dense_classifier(weights, class_count, config)
    classifier = TopBlockClassifier(base.name, image_size, boundary.layer, block, head)
    classifier.find_layers_in(base.file)
    try:
        classifier.predict_proba(np.zeros((1, int(np.prod(boundary.shape))), np.float32))
    except InvalidModelError as error:
        raise UnsavableError(
            f"{base.name} fine-tuned above {boundary.layer} cannot be saved ({error}): "
            f"unfreeze fewer layers"
        ) from error
    return classifier
