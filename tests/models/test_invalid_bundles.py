"""An invalid file is refused in one line, and nothing in it is executed."""

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import skops.io
from bundle_sets import bundle_of, encode, fit_head, fit_top_block, linear_head, scores_of
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.pipeline import make_pipeline

from pipeline.errors import BadDataError
from pipeline.heads.calibration import TemperatureScaling
from pipeline.images.views import POLICIES
from pipeline.models import bundle as bundle_module
from pipeline.models.bundle import digest_of, load_bundle, save_bundle
from pipeline.models.serialization import UnsavableError, dump_estimator
from pipeline.spec import FeatureSpec

Members = dict[str, bytes]
SENTINEL = "sentinel"


def refused(path: Path) -> str:
    """Return why a file is refused; fail unless the reason is one line and the exit code 65."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(BadDataError) as caught:
        load_bundle(path)
    message = str(caught.value)
    assert caught.value.exit_code == 65
    assert message.startswith(f"{path} is refused: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 350
    assert sorted(path.parent.iterdir()) == before
    assert not Path(SENTINEL).exists()
    return message


class Payload:
    """Its unpickling makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (SENTINEL,)


def keras_file_with_a_lambda() -> bytes:
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "layers": [layer]}))
    return stream.getvalue()


def members_of(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: Members, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip file of some members with a correct digest."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            if name != "sha256":
                archive.writestr(name, data)
        archive.writestr("sha256", digest_of(archive))
    return stream.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def one_array(shape: str, dtype: str = "'<f8'", data: bytes = bytes(64)) -> bytes:
    """Return a file whose only valid member is one array."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"
    return packed({"bundle.json": b"{}", "schema.json": b"{}", "1.npy": npy(header, data)})


FILES: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\x07" * 7,
    "random bytes": np.random.default_rng(0).bytes(5000),
    "a pickle that runs code": pickle.dumps(Payload()),
    "a Keras model with a Lambda": keras_file_with_a_lambda(),
    "half of a zip": keras_file_with_a_lambda()[:80],
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a zip of nothing": packed({}),
    "a description that is a list": packed({"bundle.json": b"[]", "schema.json": b"{}"}),
    "no description": packed({"schema.json": b"{}"}),
    "an array of 32 GB": one_array("(4294967296,)"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    path.write_bytes(FILES[name])
    refused(path)


def test_files_of_format_1_say_classify_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"anything")
    assert "classify again" in refused(path)


def test_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.skops").mkdir()
    assert "expected a model file" in refused(tmp_path / "folder.skops")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.skops")  # opening it would block for ever
        assert "expected a model file" in refused(tmp_path / "pipe.skops")


# ------------------------------------------------------------------ the description


Change = Callable[[dict[str, Any]], object]


def setting(place: str, value: Any) -> Change:
    """Set the field ``a.b`` of the description."""

    def change(description: dict[str, Any]) -> None:
        *parents, name = place.split(".")
        for parent in parents:
            description = description[parent]
        description[name] = value

    return change


def in_spec(**values: Any) -> Change:
    """Change the feature spec, with a correct fingerprint."""

    def change(description: dict[str, Any]) -> None:
        description["spec"].update(values)
        description["fingerprint"] = FeatureSpec.from_dict(description["spec"]).fingerprint

    return change


def in_views(views: int, **changed: Any) -> Change:
    """Declare means over ``views`` views, augmented as in the book, with changes."""
    augmentation = POLICIES["book"].to_dict() | changed

    def change(description: dict[str, Any]) -> None:
        description["document"] |= {"tta": views, "augmentation": augmentation}

    return change


VALID_CALIBRATION: dict[str, Any] = {
    "labels": [0, 1],
    "predicted": [0, 0],
    "label_probability": [1, 0.5],
    "probability": [1, 0.5],
    "distance": [0.2, 2],
}


def in_calibration(**changed: Any) -> Change:
    """Declare a calibration set of two images, with changes."""
    return setting("document.calibration_set", VALID_CALIBRATION | changed)


CHANGES: dict[str, tuple[Change, str]] = {
    "format": (setting("format", 1), "format 2"),
    "no head": (lambda text: text.pop("head"), "format 2"),
    "one field more": (setting("__class__", "os.system"), "format 2"),
    "three classes": (setting("classes", ["a", "b", "c"]), "does not have 3 classes"),
    "one class": (setting("classes", ["a"]), "two or more different names"),
    "the same class twice": (setting("classes", ["a", "a"]), "different names"),
    "half a surrogate pair": (setting("classes", ["\ud800", "b"]), "valid folder names"),
    "calibration of minus one reference": (
        in_calibration(references=-1),
        "invalid number of references",
    ),
    "calibration of another type": (setting("document.calibration_set", []), "other columns"),
    "calibration with a column more": (in_calibration(more=[1, 1]), "other columns"),
    "calibration of other classes": (in_calibration(labels=[0, 2]), "labels of its calibration"),
    "calibration of half a class": (in_calibration(labels=[0, 0.5]), "labels of its calibration"),
    "calibration of true": (in_calibration(predicted=[0, True]), "predicted of its calibration"),
    "calibration of text": (in_calibration(distance="11"), "distance of its calibration"),
    "calibration of a long distance": (in_calibration(distance=[0, 2.1]), "distance of its calib"),
    "calibration below 0": (
        in_calibration(probability=[0, -0.1]),
        "probability of its calibration",
    ),
    "calibration of two lengths": (in_calibration(distance=[0]), "columns of [1, 2] images"),
    "calibration of no image": (
        in_calibration(**{name: [] for name in VALID_CALIBRATION}),
        "columns of [0] images",
    ),
    "class with a NUL": (setting("classes", ["a\0", "b"]), "valid folder names"),
    "class without a name": (setting("classes", ["", "b"]), "valid folder names"),
    "head of half a pair": (setting("head", "\ud800"), "valid file names"),
    "head without a name": (setting("head", ""), "valid file names"),
    "params with a NUL": (setting("params", "C=\0"), "valid file names"),
    "classes of numbers": (setting("classes", [1, 2]), "different names"),
    "another width": (setting("shape", [13]), "takes 12 features; expected 13"),
    "shape is a text": (setting("shape", "12"), "such as [4, 4, 512]"),
    "shape of nothing": (setting("shape", []), "such as [4, 4, 512]"),
    "32 GB of features": (setting("shape", [2**33]), "8,589,934,592 features"),
    "negative shape": (setting("shape", [-12]), "such as [4, 4, 512]"),
    "flat vectors": (setting("input", "flat"), "its input is 'flat'"),
    "unknown input": (setting("input", "round"), "its input is 'round'"),
    "spec lacks": (setting("spec", {"base": "vgg16"}), "needs the fields"),
    "unknown base": (setting("spec.base", "vgg61\x1b[31m"), "unknown base"),
    "image size": (setting("spec.image_size", 10**9), "at most 4096"),
    "resize": (setting("spec.resize", "stretch"), "expected squash or crop or pad"),
    "fingerprint": (setting("fingerprint", "0" * 12), "fingerprint"),
    "document": (setting("document", []), "not a JSON object"),
    "root": (setting("document.root", 3), "its root is not a string"),
    "engine": (setting("document.engine", ["onnx"]), "its engine is ['onnx']"),
    "views are a text": (setting("document.tta", "4"), "its tta is '4'"),
    "views are a truth": (setting("document.tta", True), "its tta is True"),
    "negative views": (in_views(-1), "from 0 to 1000; received -1"),
    "a million views": (in_views(10**6), "from 0 to 1000; received 1000000"),
    "views of nothing": (setting("document.tta", 4), "the augmentation needs"),
    "views of another version": (in_views(4, version=99), "views of version 99"),
    "views turned by a text": (in_views(4, rotation="40"), "rotation should be float"),
    "views turned too far": (in_views(4, rotation=1e9), "from 0 to 180"),
    "seed of 10 digits": (in_spec(weights="random-9999999999"), "of its weights is a"),
    "seed that is none": (in_spec(weights="random-x"), "expected random-SEED"),
    "pooling": (setting("layer", "block5_pool:foo"), "block5_pool:avg"),
    "pooling twice": (setting("layer", "block5_pool:avg:avg"), "block5_pool:avg"),
    "pooling none": (setting("layer", "block5_pool:none"), "block5_pool:avg"),
    "layer without a name": (setting("layer", ":avg"), "block5_pool:avg"),
    "layer": (setting("layer", ["a"]), "its layer is not a string"),
}


@cache
def saved(head: str = "logistic") -> bytes:
    """Return the file of a valid bundle."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.skops"
        save_bundle(bundle_of(fit_head(head)), path)
        return path.read_bytes()


def valid_description() -> dict[str, Any]:
    return dict(json.loads(members_of(saved())["bundle.json"]))


@pytest.mark.parametrize("name", CHANGES)
def test_an_inconsistent_description_is_refused(name: str, tmp_path: Path) -> None:
    change, said = CHANGES[name]
    path, head = tmp_path / "model.skops", fit_head("logistic")
    description = valid_description()
    change(description)
    path.write_bytes(encode(description, head))
    assert said in refused(path)


def test_a_repeated_key_and_invalid_numbers_are_refused(tmp_path: Path) -> None:
    path, members = tmp_path / "model.skops", members_of(saved())
    plain = members["bundle.json"].decode()
    for text in (
        plain.replace('"head":', '"head": "knn", "head":', 1),
        plain.replace('"format": 2', '"format": 2, "seconds": NaN', 1),
        plain.replace('"set": "synthetic"', '"set": "synthetic", "seconds": 1e999', 1),
        plain[:-1],
        "[" * 100_000,
    ):
        assert text != plain
        path.write_bytes(packed(members | {"bundle.json": text.encode()}))
        assert "it is damaged, or" in refused(path)


# ------------------------------------------------------------------ the estimator


def put(**values: Any) -> Callable[[Any], object]:
    """Set attributes of the last step."""
    return lambda step: vars(step).update(values)


def array(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Any], object]:
    """Replace an array of the last step."""
    return lambda step: setattr(step, name, change(getattr(step, name)))


def each(number: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda old: np.full_like(old, number)


def tree(**changes: Any) -> Callable[[Any], object]:
    """Set fields in every node of the first tree."""

    def change(forest: Any) -> None:
        inner = forest.estimators_[0].tree_
        constructor, arguments, state = inner.__reduce__()
        state["nodes"] = state["nodes"].copy()
        for name, value in changes.items():
            state["nodes"][name] = value
        forest.estimators_[0].tree_ = constructor(*arguments)
        forest.estimators_[0].tree_.__setstate__(state)

    return change


def tree_of(feature_count: int) -> Callable[[Any], object]:
    def change(forest: Any) -> None:
        inner = forest.estimators_[0].tree_
        constructor, (_, *others), state = inner.__reduce__()
        forest.estimators_[0].tree_ = constructor(feature_count, *others)
        forest.estimators_[0].tree_.__setstate__(state)

    return change


UNFIT = "are inconsistent"
LOST = "are not valid trees"
SAME = "neighbors are inconsistent"
STEP_CHANGES: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "NaN weights": ("logistic", array("coef_", each(np.nan)), "not all finite"),
    "weights of 1e308": ("logistic", array("coef_", each(1e308)), "within 1e+36"),
    "weights of a wider head": ("logistic", put(coef_=np.ones((1, 13))), "expected numbers"),
    "transposed": ("logistic", array("coef_", np.transpose), "coef_ has shape (12, 1)"),
    "weights that broadcast": ("logistic", put(intercept_=np.ones((10**6, 1))), "intercept_ has"),
    "weights that are a list": ("logistic", array("coef_", np.ndarray.tolist), "coef_ has shape"),
    "weights of texts": ("logistic", array("coef_", lambda old: old.astype("U9")), "coef_ has"),
    "no weights": ("logistic", lambda step: delattr(step, "coef_"), "damaged, or not"),
    "no width": ("logistic", lambda step: delattr(step, "n_features_in_"), "damaged, or not"),
    "classes 0 and 0": ("logistic", put(classes_=np.zeros(2, int)), "does not have 2 classes"),
    "classes 1 and 2": ("naive_bayes", put(classes_=np.array([1, 2])), "does not have 2 classes"),
    "LDA of other shapes": ("lda", array("coef_", lambda old: old[:, 1:]), "coef_ has shape"),
    "means of other shapes": ("naive_bayes", array("theta_", lambda old: old[:1]), "theta_ has"),
    "variance 0": ("naive_bayes", array("var_", each(0)), "do not sum to 1"),
    "shares that sum to 2": ("majority", array("class_prior_", each(1)), "do not sum to 1"),
    "negative shares": ("majority", put(class_prior_=np.array([-1.0, 2])), "do not sum to 1"),
    "a billion outputs": ("majority", put(n_outputs_=10**9), "does not have 2 classes"),
    "a hidden method": ("majority", put(predict_proba="x"), "shadows an attribute of"),
    "no neighbor": ("knn", put(n_neighbors=0), "do not sum to 1"),
    "more neighbors than rows": ("knn", put(n_neighbors=121), "damaged, or not"),
    "neighbors of no class": ("knn", array("_y", each(2)), SAME),
    "neighbors of class -1": ("knn", array("_y", each(-1)), SAME),
    "fewer labels": ("knn", array("_y", lambda old: old[1:]), "_y has shape (119,)"),
    "narrower neighbors": ("knn", array("_fit_X", lambda old: old[:, 1:]), "_fit_X has shape"),
    "a strange metric": ("knn", put(effective_metric_="mahalanobis"), SAME),
    "a metric by name": ("knn", put(effective_metric_="precomputed"), SAME),
    "neighbors in a tree": ("knn", put(_fit_method="kd_tree"), SAME),
    "centroids of other shapes": ("prototype", array("centroids_", lambda old: old[:, 1:]), "cent"),
    "fewer support vectors": ("svm_rbf", array("support_vectors_", lambda old: old[1:]), "_ has"),
    "more indices": ("svm_rbf", put(support_=np.zeros(10**6, "i4")), "_ has shape"),
    "support vectors of one": ("svm_rbf", array("_n_support", each(10**6)), UNFIT),
    "counts below 0": ("svm_rbf", put(_n_support=np.array([-2, 2**31 - 1], "i4")), UNFIT),
    "three classes of two": ("svm_rbf", array("_n_support", lambda old: old[[0, 1, 1]]), "_n_supp"),
    "coefficients": ("svm_rbf", array("_dual_coef_", lambda old: old[:, 1:]), "_dual_coef_ has"),
    "no intercept": ("svm_rbf", array("_intercept_", lambda old: old[:0]), "_intercept_ has"),
    "Platt's numbers": ("svm_rbf", put(_probA=np.ones(1)), UNFIT),
    "a precomputed kernel": ("svm_rbf", put(kernel="precomputed"), UNFIT),
    "a sparse machine": ("svm_rbf", put(_sparse=True), UNFIT),
    "a regression": ("svm_rbf", put(_impl="epsilon_svr"), "shadows an attribute of"),
    "a tree in a circle": ("random_forest", tree(left_child=0), LOST),
    "a child beyond": ("random_forest", tree(left_child=10**6), LOST),
    "a child below": ("random_forest", tree(right_child=-5), LOST),
    "one child twice": ("random_forest", tree(left_child=1, right_child=1), LOST),
    "a feature beyond": ("random_forest", tree(feature=12), LOST),
    "a feature below": ("random_forest", tree(feature=-5), LOST),
    "a tree of other features": ("random_forest", tree_of(1000), LOST),
    "trees of more classes": ("random_forest", put(n_classes_=10**12), "does not have 2 classes"),
    "a forest of forests": (
        "random_forest",
        lambda forest: forest.estimators_.append(deepcopy(forest)),
        "contains a sklearn.ensemble",
    ),
    "dense weights of other shapes": (
        "dense",
        lambda head: head.weights_.__setitem__(0, head.weights_[0].T.copy()),
        "its dense layers have weights",
    ),
    "a million units": ("dense", put(units=10**6), "its dense layers have weights"),
    "an optimizer of their own": (
        "dense",
        put(optimizer={"class_name": "x"}),
        "optimizer: expected",
    ),
    "a dropout of 2": ("dense", put(dropout=2.0), "dropout: expected 0"),
    "infinite dense weights": (
        "dense",
        lambda head: head.weights_.__setitem__(3, np.full(1, np.inf, "f4")),
        "not all finite",
    ),
}


def last_step(estimator: Any) -> Any:
    inner = (
        getattr(estimator, "estimator", estimator) if hasattr(estimator, "method") else estimator
    )
    return inner[-1] if hasattr(inner, "steps") else inner


@pytest.mark.parametrize("name", STEP_CHANGES)
def test_an_inconsistent_estimator_is_refused(name: str, tmp_path: Path) -> None:
    head, change, said = STEP_CHANGES[name]
    path, changed = tmp_path / "model.skops", deepcopy(fit_head(head))
    change(last_step(changed))
    path.write_bytes(encode(valid_description(), changed))
    assert said in refused(path)


def scaled(**values: Any) -> Any:
    head = deepcopy(fit_head("ridge"))
    vars(head).update(values)
    return head


def nested(inner: Any) -> Any:
    return make_pipeline(inner)


WHOLE: dict[str, tuple[Callable[[], Any], str]] = {
    "temperature 0": (lambda: scaled(temperature=0.0), "not within 1e-30"),
    "temperature NaN": (lambda: scaled(temperature=float("nan")), "not within"),
    "temperature 1e300": (lambda: scaled(temperature=1e300), "not within"),
    "temperature is a text": (lambda: scaled(temperature="1"), "damaged, or not"),
    "scores of another method": (lambda: scaled(method="set_params"), "scores come from"),
    "scaled twice": (lambda: TemperatureScaling(scaled()), "in an unexpected place"),
    "a pipeline in a pipeline": (lambda: nested(fit_head("logistic")), "in an unexpected place"),
    "no classifier": (lambda: [1, 2, 3], "in an unexpected place"),
    "a text": (lambda: "cos\nsystem", "in an unexpected place"),
    "another estimator": (GradientBoostingClassifier, "which is not trusted"),
    "no probabilities": (lambda: scaled().estimator, "damaged, or not"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_estimator_of_another_structure_is_refused(name: str, tmp_path: Path) -> None:
    make, said = WHOLE[name]
    path = tmp_path / "model.skops"
    path.write_bytes(encode(valid_description(), make()))
    assert said in refused(path)


def test_a_file_does_not_set_the_number_of_threads(tmp_path: Path) -> None:
    forest = deepcopy(fit_head("random_forest"))
    forest[-1].n_jobs = 10**6
    save_bundle(bundle_of(forest), tmp_path / "model.skops")
    assert load_bundle(tmp_path / "model.skops").estimator[-1].n_jobs is None


# ------------------------------------------------------------------ the schema


def node(loader: str, name: str, **content: Any) -> dict[str, Any]:
    module, _, kind = name.rpartition(".")
    return {"__loader__": loader, "__module__": module, "__class__": kind, "__id__": 1, **content}


SYSTEM = node("FunctionNode", "os.system")
ARGUMENTS = node("JsonNode", "builtins.str", content=f'["mkdir {SENTINEL}"]')
NODES: dict[str, dict[str, Any]] = {
    "os.system": SYSTEM,
    "builtins.eval": node("TypeNode", "builtins.eval"),
    "an object of os": node("ObjectNode", "os.system", content=ARGUMENTS),
    "MethodNode": node("MethodNode", "builtins.str", content={"obj": ARGUMENTS, "func": "x"}),
    "OperatorFuncNode": node("OperatorFuncNode", "operator.methodcaller", attrs=ARGUMENTS),
    "PartialNode": node(
        "PartialNode", "functools.partial", content={"func": SYSTEM, "args": ARGUMENTS}
    ),
    "a constructor": node("ConstructorFromReduceNode", "os.system", content=ARGUMENTS),
    "a ufunc": node("FunctionNode", "numpy.add"),
    "CachedNode": node("CachedNode", "builtins.str"),
    "a type of scikit-learn": node("TypeNode", "sklearn.pipeline.Pipeline"),
    "an array of another type": node(
        "NdArrayNode", "sklearn.pipeline.Pipeline", type="numpy", file="1.npy"
    ),
    "a loader of none": node("NoNode", "builtins.str"),
}


def with_schema(change: Callable[[dict[str, Any]], object], head: str) -> bytes:
    members = members_of(saved(head))
    schema = json.loads(members["schema.json"])
    change(schema)
    return packed(members | {"schema.json": json.dumps(schema).encode()})


@pytest.mark.parametrize("name", NODES)
def test_a_foreign_type_or_loader_is_refused_before_anything_is_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.skops"
    path.write_bytes(with_schema(lambda schema: schema.update(more=NODES[name]), "logistic"))
    monkeypatch.setattr(skops.io, "load", None)
    assert "which is not trusted" in refused(path)


def nodes_of(schema: Any, loader: str) -> list[dict[str, Any]]:
    if not isinstance(schema, dict | list):
        return []
    inner = list(schema.values()) if isinstance(schema, dict) else schema
    found = [each for child in inner for each in nodes_of(child, loader)]
    own = isinstance(schema, dict) and schema.get("__loader__") == loader
    return [schema, *found] if own else found


def in_tree(change: Callable[[Any, Any], object]) -> Callable[[dict[str, Any]], object]:
    """Change the arguments and the state of the first tree."""

    def changed(schema: dict[str, Any]) -> None:
        first = nodes_of(schema, "TreeNode")[0]
        change(first["__reduce__"]["args"]["content"], first["content"]["content"])

    return changed


def fresh(content: str) -> dict[str, Any]:
    return node("JsonNode", "builtins.str", content=content, is_json=True) | {"__id__": 7}


def deep(schema: dict[str, Any]) -> None:
    for number in range(60):
        inner = dict(schema)
        schema.clear()
        schema.update(node("ListNode", "builtins.list", content=[inner]), protocol=2, __id__=number)


def shared_file(schema: dict[str, Any]) -> None:
    first, second, *_ = nodes_of(schema, "NdArrayNode")
    second["file"] = first["file"]


def two_of_one_id(schema: dict[str, Any]) -> None:
    first, second, *_ = nodes_of(schema, "NdArrayNode")
    second["__id__"] = first["__id__"]


DECLARE = "unlike the number of nodes"
SCHEMAS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "nested deeply": ("logistic", deep, "nested deeper than 50"),
    "an older protocol": ("logistic", lambda schema: schema.update(protocol=0), "has protocol 0"),
    "one file for two arrays": ("logistic", shared_file, "their own files"),
    "two objects of one id": ("logistic", two_of_one_id, "two objects with one id"),
    "more nodes than there are": (
        "random_forest",
        in_tree(lambda _, state: state.update(node_count=fresh("1000000000"))),
        DECLARE,
    ),
    "a billion outputs": (
        "random_forest",
        in_tree(lambda arguments, _: arguments.__setitem__(2, fresh("1000000000"))),
        DECLARE,
    ),
    "values as nodes": (
        "random_forest",
        in_tree(lambda _, state: state.update(nodes=state["values"])),
        DECLARE,
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_skops_does_not_check_is_refused(name: str, tmp_path: Path) -> None:
    head, change, said = SCHEMAS[name]
    path = tmp_path / "model.skops"
    path.write_bytes(with_schema(change, head))
    assert said in refused(path)


# ------------------------------------------------------------------ the file


def test_array_headers_are_checked_before_arrays_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, members = tmp_path / "model.skops", members_of(saved())
    name = next(each for each in members if each.endswith(".npy"))
    monkeypatch.setattr(skops.io, "load", None)
    header = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"
    for odd in (
        npy(header.format("'<f8'", "(4294967296,)"), bytes(64)),
        npy(header.format("'<f8'", "(1099511627776, 1099511627776)"), bytes(64)),
        npy(header.format("'|O'", "(8,)"), bytes(64)),
        npy(header.format("[('a', '|O')]", "(8,)"), bytes(64)),
        npy("{'descr': __import__('os').mkdir('sentinel')}"),
        b"\x93NUMPY\x07\x00" + bytes(64),
        pickle.dumps(Payload()),
        keras_file_with_a_lambda(),
    ):
        path.write_bytes(packed(members | {name: odd}))
        refused(path)


def test_unexpected_members_are_refused(tmp_path: Path) -> None:
    path, sound = tmp_path / "model.skops", saved()
    members = members_of(sound)
    path.write_bytes(packed(members, compression=zipfile.ZIP_DEFLATED))
    assert "compressed" in refused(path)
    path.write_bytes(packed(members | {"code.py": b""}))
    assert "code.py" in refused(path)
    path.write_bytes(packed(members | {"schema.json": b" " * 2**26 + members["schema.json"]}))
    assert "larger than" in refused(path)
    stream = io.BytesIO(sound)
    with zipfile.ZipFile(stream, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("bundle.json", members["bundle.json"])
    path.write_bytes(stream.getvalue())
    assert "equal names" in refused(path)
    stream = io.BytesIO(sound)
    with zipfile.ZipFile(stream, "a") as archive:
        first = archive.infolist()[0]
        for number in range(50):  # all of them the same bytes
            archive.filelist.append(deepcopy(first))
            archive.filelist[-1].filename = f"{number}.npy"
        archive.NameToInfo = {each.filename: each for each in archive.filelist}
        archive._didModify = True
    path.write_bytes(stream.getvalue())
    assert "overlap" in refused(path)


def test_a_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    size = 3 * 2**30
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(0)
        file.write(b"PK" * 100)
    if not 0 < path.stat().st_blocks * 512 < size // 16:
        pytest.skip("this file system fills holes, or does not count blocks")
    assert "it is sparse" in refused(path)
    with path.open("r+b") as file:
        file.truncate(5 * 2**30)
    assert "more than 4,294,967,296" in refused(path)


@pytest.mark.parametrize("head", ["svm_rbf", "knn"])
def test_a_flipped_bit_is_refused_or_changes_nothing(head: str, tmp_path: Path) -> None:
    """Some bits of a zip have no effect, such as the time of a member."""
    path = tmp_path / "model.skops"
    bundle = bundle_of(fit_head(head))
    save_bundle(bundle, path)
    sound, expected = path.read_bytes(), scores_of(bundle)
    refusals = 0
    for place in np.linspace(0, 8 * len(sound) - 1, 200).astype(int):
        damaged = bytearray(sound)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            loaded = load_bundle(path)
        except BadDataError:
            refused(path)
            refusals += 1
        else:
            np.testing.assert_array_equal(scores_of(loaded), expected)
    assert refusals > 150
    for length in np.linspace(0, len(sound) - 1, 60).astype(int):
        path.write_bytes(sound[:length])
        refused(path)


# ------------------------------------------------------------------ fine-tuned models

KERNEL = "block5_conv3/kernel"
BlockChange = Callable[[dict[str, Any], Any], object]


def described(change: Change) -> BlockChange:
    return lambda description, _: change(description)


def block(change: Callable[[dict[str, Any]], object]) -> BlockChange:
    return lambda _, estimator: change(estimator.block)


def kernel(change: Callable[[np.ndarray], np.ndarray]) -> BlockChange:
    return block(lambda arrays: arrays.update({KERNEL: change(arrays[KERNEL])}))


BLOCK_CHANGES: dict[str, tuple[BlockChange, str]] = {
    "another layer": (described(setting("layer", "block5_conv1")), "its boundary is"),
    "another base": (described(in_spec(base="vgg19")), "its base is"),
    "another size": (described(in_spec(image_size=64)), "its image_size is"),
    "pooled maps": (described(setting("input", "pooled")), "its layers take 2,048 features"),
    "maps that are no maps": (described(setting("shape", [4096, 4096])), "received 16,777,216"),
    "no layer": (block(lambda arrays: arrays.pop("block5_conv3/bias")), "bias has shape none"),
    "a layer more": (block(lambda arrays: arrays.update(x=np.ones(3))), "x has shape (3,)"),
    "another shape": (kernel(lambda old: old[:2]), "has shape (2, 3, 512, 512); expected"),
    "an empty array": (kernel(lambda old: old[:0]), "has shape (0, 3, 512, 512)"),
    "not finite": (kernel(each(np.nan)), "not all finite"),
    "beyond all bounds": (kernel(each(1e37)), "within 1e+36"),
}


@pytest.mark.parametrize("name", BLOCK_CHANGES)
def test_a_fine_tuned_block_of_another_base_is_refused(name: str, tmp_path: Path) -> None:
    change, said = BLOCK_CHANGES[name]
    bundle, path = fit_top_block(), tmp_path / "model.skops"
    save_bundle(bundle, path)
    description = dict(json.loads(members_of(path.read_bytes())["bundle.json"]))
    estimator = deepcopy(bundle.estimator)
    change(description, estimator)
    path.write_bytes(encode(description, estimator))
    assert said in refused(path)


# ------------------------------------------------------------------ saving


def test_estimators_that_loading_refuses_are_not_saved() -> None:
    for estimator, reason in (
        (linear_head(np.full((1, 12), np.nan), np.zeros(1)), "not all finite"),
        (linear_head(np.full((1, 12), 1e37), np.zeros(1)), r"within 1e\+36"),
        (scaled(temperature=1e40), "temperature is not within"),
        (GradientBoostingClassifier(n_estimators=2).fit(np.eye(4), [0, 1, 0, 1]), "not trusted"),
        (lambda: None, "not trusted"),
        ((each for each in ()), "skops cannot save it"),
    ):
        with pytest.raises(UnsavableError, match=reason):
            dump_estimator(estimator, io.BytesIO(), 2)


def test_digests_are_compared_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.skops"
    save_bundle(bundle_of(fit_head("logistic")), path)
    built = Mock()
    monkeypatch.setattr(bundle_module, "load_estimator", built)
    monkeypatch.setattr(bundle_module, "digest_of", lambda archive: "0" * 64)
    assert "damaged" in refused(path)
    assert not built.called


def test_skops_itself_reads_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    bundle = bundle_of(fit_head("random_forest"))
    save_bundle(bundle, path)
    loaded = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    np.testing.assert_array_equal(scores_of(bundle_of(loaded)), scores_of(bundle))
