"""What the documents say is true."""

import re
from pathlib import Path

import numpy as np
from drawing import draw_set

from pipeline import extract_features

ROOT = Path(__file__).parents[1]


def test_ten_line_reader_of_the_format_page_reads_a_cache(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "FORMAT.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "pipeline" not in code
    assert len(code.split("def ")[1].splitlines()) <= 10
    root = draw_set(tmp_path / "drawn", per_class=4)
    table = extract_features(root, base="pixels").table
    extract_features(root, base="pixels", limit_per_class=3)
    names: dict[str, object] = {}
    exec(code, names)
    features, labels, classes, splits, paths, document = names["read_cache"](table.path)  # type: ignore[operator]
    assert classes == ["plain", "striped"]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert not splits.any()
    assert document["spec"]["base"] == "pixels"
    kept = [table.columns.paths.tolist().index(path) for path in paths]
    np.testing.assert_array_equal(features["pixels"], table.features("pixels")[kept])
