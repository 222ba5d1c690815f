"""The measurement of a warm extract reads every image from the cache."""

import json

import pytest

from benchmarks.warm import main


def test_warm_extract_of_drawn_images_computes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--images", "40", "--rounds", "1", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 40
    assert document["computed"] == [40, 0]
    assert len(document["seconds"]) == 1
