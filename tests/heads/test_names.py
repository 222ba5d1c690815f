"""Names, groups and inputs of heads are parsed."""

import re
import subprocess
import sys

import pytest

from pipeline.errors import UsageError
from pipeline.heads.names import HeadRequest, groups, parse_custom_head, parse_heads
from pipeline.heads.registry import HEADS


def test_all_excludes_protocols_and_fast_excludes_slow_heads() -> None:
    assert [request.name for request in parse_heads("all")] == list(groups()["all"])
    assert set(HEADS) - set(groups()["all"]) == {"kornblith"}
    assert {request.input for request in parse_heads("all")} == {None}
    assert {request.input for request in parse_heads("all:flat")} == {"flat"}
    fast = [request.name for request in parse_heads("fast")]
    assert fast == list(groups()["fast"])
    assert set(groups()["all"]) - set(fast) == {"dense", "svm_rbf", "random_forest"}
    assert parse_heads("kornblith") == [HeadRequest("kornblith")]


def test_novelty_is_among_all_heads_where_there_is_a_normal_class() -> None:
    assert HeadRequest("novelty") in parse_heads("all", has_normal=True)
    assert HeadRequest("novelty") not in parse_heads("fast", has_normal=True)
    assert "novelty" not in groups()["all"]
    with pytest.raises(UsageError, match="name it with --normal"):
        parse_heads("novelty")


@pytest.mark.slow
def test_fast_heads_load_no_keras() -> None:
    command = (
        "import sys; from pipeline.heads.names import groups; "
        "from pipeline.heads.registry import load_head; "
        "[load_head(name).build(8, 2) for name in groups()['fast']]; "
        "print([name for name in ('keras', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_each_head_may_have_an_input_and_repeats_are_dropped() -> None:
    assert parse_heads(" knn, dense:pooled,knn ,dense:flat") == [
        HeadRequest("knn"),
        HeadRequest("dense", "pooled"),
        HeadRequest("dense", "flat"),
    ]
    assert parse_heads(["ridge", "lda:flat"]) == [HeadRequest("ridge"), HeadRequest("lda", "flat")]
    assert parse_heads("lda,fast").count(HeadRequest("lda")) == 1


def test_a_custom_head_is_a_module_and_a_factory() -> None:
    assert parse_custom_head("mine:make") == HeadRequest("mine:make")
    assert parse_custom_head("a.b:c.d:flat") == HeadRequest("a.b:c.d", "flat")
    assert parse_custom_head("knn:make:pooled") == HeadRequest("knn:make", "pooled")
    assert parse_heads("mine:make,knn,mine:make:flat") == [
        HeadRequest("mine:make"),
        HeadRequest("knn"),
        HeadRequest("mine:make", "flat"),
    ]
    for text in ("mine:make:flat", "knn", "lda:pooled"):
        assert [str(request) for request in parse_heads(text)] == [text]
    for text in ("make", "mine:", ":make", "mine:make:round", "mine:make()", "a/b.py:make"):
        with pytest.raises(UsageError, match="expected MODULE:FACTORY"):
            parse_custom_head(text)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("logistik", "did you mean logistic?"),
        ("logistik:flat", "did you mean logistic?"),
        ("fasst", "did you mean fast?"),
        ("quantum", "choose from dense, logistic"),
        ("knn:round", "flat or pooled"),
        ("all:round", "flat or pooled"),
        ("mine:make:round", "expected MODULE:FACTORY"),
        (" , ", "--heads is empty"),
    ],
)
def test_error_for_a_wrong_name_suggests_a_cure(typed: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_heads(typed)
