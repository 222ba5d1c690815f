"""Fixtures of all tests of comparisons."""

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def _one_blas_thread() -> Iterator[None]:
    """Threads of several BLAS libraries wait for each other in busy loops."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
