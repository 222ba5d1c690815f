"""The table shows the columns that fit, and names the others."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.errors import UsageError
from pipeline.evaluation.result import COLUMN_NAMES, Result
from pipeline.evaluation.table import (
    columns_of,
    legend,
    markdown_table,
    named_columns,
    plain_table,
    rich_table,
)

NAN = float("nan")
LOGISTIC = Result(
    head="logistic",
    input="pooled",
    params="C=0.1",
    train_accuracy=1.0,
    validation_accuracy=0.97,
    test_accuracy=0.975,
    test_low=0.934,
    test_high=0.9906,
    macro_f1=0.975,
    roc_auc=0.9981,
    log_loss=0.0712,
    top5_accuracy=NAN,
    fit_seconds=0.123,
    predict_ms=0.0004,
    parameters=2_097_665,
    base="vgg16",
    layer="block5_pool",
    image_size=150,
    fingerprint="0123456789ab",
    cache="cache/synthetic-vgg16-0123456789ab.h5",
    balanced_accuracy=0.975,
    fits=1,
)
SVM = replace(LOGISTIC, head="linear_svm", log_loss=NAN, validation_accuracy=0.9)


def test_columns_of_results_csv_do_not_change() -> None:
    assert ",".join(COLUMN_NAMES) == (
        "head,input,params,train_accuracy,validation_accuracy,test_accuracy,test_low,test_high,"
        "macro_f1,roc_auc,log_loss,top5_accuracy,fit_seconds,predict_ms,parameters,"
        "base,layer,image_size,fingerprint,cache,balanced_accuracy,brier,ece,temperature,"
        "calibrated_log_loss,calibrated_ece,fits,test_spread,p_value,p_holm,verdict,recommended,"
        "status,validation_balanced_accuracy,model,views,tta,coverage,kept_accuracy,left_out_auroc,"
        "recall_at_5_percent_false_alarms,false_alarms,best_recall_at_5_percent_false_alarms,note"
    )


def test_a_row_has_none_instead_of_nan() -> None:
    assert SVM.row()["log_loss"] is None
    assert SVM.row()["top5_accuracy"] is None
    assert list(SVM.row()) == list(COLUMN_NAMES)


def test_plain_text_is_aligned() -> None:
    assert plain_table([LOGISTIC, SVM]).splitlines() == [
        "head           test % (95 %)  val %  input   log loss  train %  parameters  params  fit s"
        "    AUC  F1 %  ms/image",
        "----------  ----------------  -----  ------  --------  -------  ----------  ------  -----"
        "  -----  ----  --------",
        "logistic    97.5 (93.4–99.1)   97.0  pooled     0.071    100.0   2,097,665  C=0.1    0.12"
        "  0.998  97.5    <0.001",
        "linear_svm  97.5 (93.4–99.1)   90.0  pooled         –    100.0   2,097,665  C=0.1    0.12"
        "  0.998  97.5    <0.001",
    ]


def test_only_columns_that_distinguish_rows_are_shown() -> None:
    def titles(*results: Result) -> list[str]:
        return plain_table(results).splitlines()[0].split()

    assert titles(LOGISTIC, SVM)[0] == "head"
    other_base = replace(LOGISTIC, base="pixels", layer="pixels")
    assert titles(LOGISTIC, other_base)[:2] == ["base", "head"]
    other_layer = replace(LOGISTIC, layer="block4_pool")
    assert titles(LOGISTIC, other_layer)[:2] == ["layer", "head"]
    assert titles(LOGISTIC, other_layer, other_base)[:3] == ["base", "layer", "head"]
    other_size = replace(LOGISTIC, image_size=224, fingerprint="ba9876543210")
    assert titles(LOGISTIC, other_size)[:2] == ["size", "head"]
    rescaled = replace(LOGISTIC, fingerprint="ba9876543210")
    assert titles(LOGISTIC, rescaled)[:2] == ["fingerprint", "head"]


def test_top_5_is_shown_where_it_applies() -> None:
    assert "top-5 %" not in plain_table([LOGISTIC])
    assert "top-5 %" in plain_table([replace(LOGISTIC, top5_accuracy=0.99)])


def test_a_row_shows_its_verdict_and_spread_or_why_it_is_empty() -> None:
    best = replace(LOGISTIC, verdict="best", recommended=True, fits=5, test_spread=0.0123)
    near = replace(SVM, verdict="≈ best", p_holm=0.0001, balanced_accuracy=0.9)
    late = Result(
        head="svm_rbf",
        input="pooled",
        base="vgg16",
        layer="block5_pool",
        image_size=150,
        fingerprint="0123456789ab",
        cache="cache/synthetic-vgg16-0123456789ab.h5",
        status="stopped after 10 s",
    )
    _, _, first, second, third = plain_table([best, near, late]).splitlines()
    assert "best *" in first
    assert "97.5 ± 1.2 (93.4–99.1)" in first
    assert "≈ best" in second
    assert "<0.001" in second
    assert "90.0" in second
    assert third.split()[:7] == ["svm_rbf", "stopped", "after", "10", "s", "–", "–"]


def test_numbers_that_equal_others_or_do_not_apply_are_no_blanks() -> None:
    best = replace(LOGISTIC, p_holm=NAN)
    near = replace(SVM, p_holm=0.4, balanced_accuracy=0.9)
    columns = named_columns("balanced,p,log-loss")
    assert plain_table([best, near], columns).splitlines()[2:] == [
        "      97.5         –     0.071",
        "      90.0     0.400         –",
    ]
    assert "balanced %" in plain_table([best, near])
    assert "balanced %" not in plain_table([best])  # all equal the accuracy


def test_named_columns_are_shown_in_their_order() -> None:
    header = plain_table([LOGISTIC], named_columns("log loss, HEAD,log_loss,test,base"))
    titles = re.split(r" {2,}", header.splitlines()[0].strip())
    assert titles == ["log loss", "head", "test % (95 %)", "base"]
    assert named_columns("") == []
    with pytest.raises(UsageError, match="--columns has no speed; choose from head, test, verdict"):
        named_columns("head,speed")


def test_the_legend_explains_the_marks_of_the_columns_shown() -> None:
    results = [replace(LOGISTIC, verdict="best", recommended=True, test_spread=0.01), SVM]
    columns = columns_of(results)
    (test, verdict) = legend(columns, results, recommends=True)  # there is no p-value
    assert "95 % interval" in test
    assert "±" in test
    assert verdict.startswith("*: recommended; ≈ best:")
    assert "not recommended" in "".join(legend(columns, results, recommends=False))
    (test,) = legend(named_columns("head,test"), [SVM], recommends=True)
    assert "±" not in test
    (p,) = legend(named_columns("p"), results, recommends=True)
    assert "McNemar" in p


def rendered(width: int) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    results = [LOGISTIC, SVM]
    console.print(rich_table(results, columns_of(results), width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
def test_a_terminal_shows_whole_cells_and_names_missing_columns(width: int) -> None:
    text = rendered(width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    assert "97.5 (93.4–99.1)" in text
    assert "linear_svm" in text
    assert ("val %" in text) or width < 40
    assert ("log loss" in text.splitlines()[0]) == (width >= 60)
    assert ("ms/image" in text.splitlines()[0]) == (width >= 120)
    assert ("results.csv" in " ".join(text.split())) == (width < 120)


def test_long_settings_are_cut() -> None:
    long = replace(LOGISTIC, params="epochs=30 " * 5)
    assert "epochs=30 epochs=30 epochs=…" in plain_table([long])


def test_markdown_has_every_column_and_escapes_bars() -> None:
    lines = markdown_table([replace(LOGISTIC, params="a|b")]).splitlines()
    assert len(lines) == 3
    assert "| a\\|b |" in lines[2]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
