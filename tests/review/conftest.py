"""A run to review, made once and copied, which saves a second for each test."""

import os
from pathlib import Path
from shutil import copytree

import pytest
from review_sets import write_cache_and_run


@pytest.fixture(scope="session")
def _folder_with_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, before = tmp_path_factory.mktemp("run"), Path.cwd()
    os.chdir(folder)
    write_cache_and_run(signal=0.3, heads="logistic,knn", seed=3, repeats=2)
    os.chdir(before)
    return folder


@pytest.fixture
def run(tmp_path: Path, _folder_with_run: Path) -> Path:
    """Return a run of two heads with mistakes, and copy its cache to ``cache/synthetic.h5``."""
    copytree(_folder_with_run, tmp_path, dirs_exist_ok=True)
    return next(Path("results").iterdir())
