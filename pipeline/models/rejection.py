"""Rejection: abstain from classifying images that belong to none of the classes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rejection:
    """Whether a prediction is rejected, and why.

    Attributes
    ----------
    reason : ``unsure`` between classes, ``unlike`` the training images, or empty if it is kept.
    classes : classes that the image may have at the chosen level, the most probable first.
    distance : to the nearest cached images, 0 … 2; NaN if it is not known.
    """

    reason: str
    classes: tuple[str, ...]
    distance: float
