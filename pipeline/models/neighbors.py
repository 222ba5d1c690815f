"""The cached images that are most similar to an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Neighbor:
    """A cached image similar to another.

    Attributes
    ----------
    path : relative to the image root of the cache.
    label : its class, as cached.
    similarity : cosine of the angle between both images' features, -1 … 1.
    row : its number in the cache.
    """

    path: bytes
    label: str
    similarity: float
    row: int
