"""A stranger's file is refused in one line, whatever it holds, and nothing in it is run."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from bundle_sets import bundle_of, fit_head, fit_top_block, scores_of
from safetensors import safe_open
from safetensors.numpy import save

from pipeline.errors import BadDataError
from pipeline.images.views import POLICIES
from pipeline.models import bundle as bundle_module
from pipeline.models.bundle import Bundle, digest_of, encode, load_bundle, save_bundle
from pipeline.spec import FeatureSpec

Arrays = dict[str, np.ndarray]
Change = Callable[[dict[str, Any], Arrays], object]
SENTINEL = "sentinel"


def refused(path: Path) -> str:
    """Why a file is refused; fails the test unless that is one line and 65."""
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
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (SENTINEL,)


def keras_file_with_a_lambda() -> bytes:
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "layers": [layer]}))
    return stream.getvalue()


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one_array(shape: list[int], end: int, dtype: str = "F64") -> dict[str, Any]:
    return {"weights": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


FILES: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\x07" * 7,
    "random bytes": np.random.default_rng(0).bytes(5000),
    "a pickle that runs code": pickle.dumps(Payload()),
    "a pickle behind a header": with_header(one_array([8], 64), pickle.dumps(Payload())[:64]),
    "a Keras model with a Lambda": keras_file_with_a_lambda(),
    "half of a zip": keras_file_with_a_lambda()[:80],
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "a header of 32 GB": struct.pack("<Q", 2**35) + b"{}",
    "a header without an end": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header that is a list": with_header([]),
    "a header that is no JSON": with_header(b"{'a': 1}"),
    "a header nested deeply": with_header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "an array of 32 GB": with_header(one_array([2**32], 2**35), bytes(64)),
    "an array of 2**80 numbers": with_header(one_array([2**40, 2**40], 64), bytes(64)),
    "an array beyond the file": with_header(one_array([8], 2**35), bytes(64)),
    "an unknown type": with_header(one_array([8], 64, "object"), bytes(64)),
    "a type that NumPy lacks": with_header(one_array([64], 64, "F8_E4M3"), bytes(64)),
    "no description": with_header(one_array([8], 64), bytes(64)),
    "a description that is a list": with_header({"__metadata__": {"bundle": "[]", "sha256": ""}}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[name])
    refused(path)


def test_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    assert "expected a model file" in refused(tmp_path / "folder.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")  # opening it would wait for ever
        assert "expected a model file" in refused(tmp_path / "pipe.safetensors")


def setting(place: str, value: Any) -> Change:
    """Put a value where ``a.b`` says, in the description."""

    def change(description: dict[str, Any], arrays: Arrays) -> None:
        *parents, name = place.split(".")
        for parent in parents:
            description = description[parent]
        description[name] = value

    return change


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Put another array in the place of one."""

    def changed(description: dict[str, Any], arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return changed


def each(number: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda old: np.full_like(old, number)


def in_spec(**values: Any) -> Change:
    """Features of another description, its fingerprint right."""

    def change(description: dict[str, Any], arrays: Arrays) -> None:
        description["spec"].update(values)
        description["fingerprint"] = FeatureSpec.from_dict(description["spec"]).fingerprint

    return change


def in_views(views: int, **changed: Any) -> Change:
    """Means over so many views, drawn as the book has it but for what is changed."""
    drawn = POLICIES["book"].to_dict() | changed

    def change(description: dict[str, Any], arrays: Arrays) -> None:
        description["document"] |= {"tta": views, "augmentation": drawn}

    return change


def without(name: str) -> Change:
    return lambda _, arrays: arrays.pop(name)


def adding(name: str) -> Change:
    return lambda _, arrays: arrays.update({name: np.ones(3, np.float32)})


def trees(children: Sequence[Sequence[int]], roots: Sequence[int] = (0,)) -> Change:
    """Another forest, of any shape."""

    def change(description: dict[str, Any], arrays: Arrays) -> None:
        count = len(children)
        arrays |= {
            "roots": np.array(roots, np.int32),
            "children": np.array(children, np.int32),
            "features": np.zeros(count, np.int32),
            "thresholds": np.zeros(count),
            "shares": np.full((count, 2), 0.5),
        }

    return change


def chain(depth: int) -> Change:
    """A tree whose every inner node has a leaf and the next inner node."""
    inner = [[2 * step + 1, 2 * step + 2] for step in range(depth)]
    children = [[node, node] for node in range(2 * depth + 1)]
    children[0 : 2 * depth : 2] = inner
    return trees(children)


CHANGES: dict[str, tuple[str, Change, str]] = {
    "format": ("ridge", setting("format", 2), "format 1"),
    "no head": ("ridge", lambda text, _: text.pop("head"), "format 1"),
    "one field more": ("ridge", setting("__class__", "os.system"), "format 1"),
    "foreign class": ("ridge", setting("classifier.kind", "os:system"), "expected one of linear"),
    "kind of a part": ("svm_rbf", setting("classifier.kind", "scaler"), "expected one of linear"),
    "calibrated twice": ("ridge", setting("classifier.classifier.kind", "calibrated"), "kind"),
    "classifier is a text": ("ridge", setting("classifier", "cos\nsystem"), "kind None"),
    "classifier says more": ("ridge", setting("classifier.module", "os"), "other values"),
    "probabilities are a number": ("logistic", setting("classifier.has_probabilities", 1), "bool"),
    "no probabilities": ("logistic", setting("classifier.has_probabilities", False), "gives no"),
    "temperature 0": ("ridge", setting("classifier.temperature", 0.0), "not within 1e-06"),
    "temperature 1e-300": ("ridge", setting("classifier.temperature", 1e-300), "not within"),
    "temperature 1e300": ("ridge", setting("classifier.temperature", 1e300), "not within"),
    "temperature is a text": ("ridge", setting("classifier.temperature", "1"), "no float"),
    "three classes": ("logistic", setting("classes", ["a", "b", "c"]), "expected float64 (3, 12)"),
    "one class": ("logistic", setting("classes", ["a"]), "two or more different names"),
    "the same class twice": ("logistic", setting("classes", ["a", "a"]), "different names"),
    "half a surrogate pair": ("logistic", setting("classes", ["\ud800", "b"]), "a folder could"),
    "class with a NUL": ("logistic", setting("classes", ["a\0", "b"]), "a folder could"),
    "class without a name": ("logistic", setting("classes", ["", "b"]), "a folder could"),
    "head of half a pair": ("logistic", setting("head", "\ud800"), "a file could"),
    "head without a name": ("logistic", setting("head", ""), "a file could"),
    "params with a NUL": ("logistic", setting("params", "C=\0"), "a file could"),
    "classes of numbers": ("logistic", setting("classes", [1, 2]), "different names"),
    "another width": ("logistic", setting("shape", [13]), "expected float64 (1, 13)"),
    "shape is a text": ("logistic", setting("shape", "12"), "such as [4, 4, 512]"),
    "shape of nothing": ("logistic", setting("shape", []), "such as [4, 4, 512]"),
    "32 GB of features": ("majority", setting("shape", [2**33]), "8,589,934,592 features"),
    "negative shape": ("majority", setting("shape", [-12]), "such as [4, 4, 512]"),
    "flat vectors": ("logistic", setting("input", "flat"), "its input is 'flat'"),
    "unknown input": ("logistic", setting("input", "round"), "its input is 'round'"),
    "spec lacks": ("logistic", setting("spec", {"base": "vgg16"}), "needs the fields"),
    "unknown base": ("logistic", setting("spec.base", "vgg61\x1b[31m"), "unknown base"),
    "image size": ("logistic", setting("spec.image_size", 10**9), "at most 4096"),
    "resize": ("logistic", setting("spec.resize", "stretch"), "expected squash or crop or pad"),
    "fingerprint": ("logistic", setting("fingerprint", "0" * 12), "fingerprint"),
    "document": ("logistic", setting("document", []), "no JSON object"),
    "root": ("logistic", setting("document.root", 3), "its root is no text"),
    "engine": ("logistic", setting("document.engine", ["onnx"]), "its engine is ['onnx']"),
    "views are a text": ("logistic", setting("document.tta", "4"), "its tta is '4'"),
    "views are a truth": ("logistic", setting("document.tta", True), "its tta is True"),
    "negative views": ("logistic", in_views(-1), "from 0 to 1000; received -1"),
    "a million views": ("logistic", in_views(10**6), "from 0 to 1000; received 1000000"),
    "views of nothing": ("logistic", setting("document.tta", 4), "an augmentation needs"),
    "views of another version": ("logistic", in_views(4, version=99), "views of version 99"),
    "views turned by a text": ("logistic", in_views(4, rotation="40"), "rotation should be float"),
    "views turned too far": ("logistic", in_views(4, rotation=1e9), "from 0 to 180"),
    "seed of 10 digits": ("logistic", in_spec(weights="random-9999999999"), "of its weights is a"),
    "seed that is none": ("logistic", in_spec(weights="random-x"), "expected random-SEED"),
    "pooling": ("logistic", setting("layer", "block5_pool:foo"), "block5_pool:avg"),
    "pooling twice": ("logistic", setting("layer", "block5_pool:avg:avg"), "block5_pool:avg"),
    "pooling none": ("logistic", setting("layer", "block5_pool:none"), "block5_pool:avg"),
    "layer without a name": ("logistic", setting("layer", ":avg"), "block5_pool:avg"),
    "layer": ("logistic", setting("layer", ["a"]), "its layer is no text"),
    "NaN weights": ("logistic", array("weights", each(np.nan)), "not finite"),
    "weights of 1e308": ("logistic", array("weights", each(1e308)), "beyond 1e+30"),
    "weights of -1e31": ("dense", array("hidden_bias", each(-1e31)), "beyond 1e+30"),
    "infinite weights": ("dense", array("output_bias", each(np.inf)), "not finite"),
    "another type": (
        "logistic",
        array("weights", lambda old: old.astype("f4")),
        "expected float64",
    ),
    "transposed": (
        "dense",
        array("hidden_kernel", lambda old: old.T.copy()),
        "expected float32 (12, U)",
    ),
    "no array": ("logistic", without("weights"), "lacks the array weights"),
    "an array more": ("logistic", adding("code"), "no use: code"),
    "a block of a linear head": ("logistic", adding("block/conv_1/kernel"), "no use: block"),
    "empty array": ("knn", array("labels", lambda old: old[:0]), "labels is int64 (0,)"),
    "neighbours of no class": ("knn", array("labels", each(2)), "does not have"),
    "no neighbour": ("knn", setting("classifier.k", 0), "does not have"),
    "more neighbours than rows": ("knn", setting("classifier.k", 121), "does not have"),
    "variance 0": ("naive_bayes", array("variances", each(0)), "not all above 0"),
    "shares sum to 2": ("majority", array("shares", each(1)), "sum to 1"),
    "negative shares": ("majority", array("shares", lambda _: np.array([-1.0, 2])), "sum to 1"),
    "scale 0": (
        "svm_rbf",
        setting("classifier.classifier.scaler.scale", 0.0),
        "scale is not above 0",
    ),
    "a tree in a circle": ("random_forest", array("children", each(0)), "in circles"),
    "a tree out of the forest": ("random_forest", array("children", each(10**6)), "out of"),
    "a feature that is not there": ("random_forest", array("features", each(12)), "out of"),
    "a root that is not there": ("random_forest", array("roots", each(-1)), "out of"),
    "a root twice": ("random_forest", array("roots", lambda old: old[[0, 0]]), "out of"),
    "no root at 0": ("random_forest", array("roots", lambda old: old[1:]), "out of"),
    "nodes of no tree": ("random_forest", array("roots", lambda old: old[:-1]), "out of"),
    "roots that fall": ("random_forest", array("roots", lambda old: old[::-1].copy()), "out of"),
    "two parents": ("random_forest", trees([[1, 2], [2, 2], [2, 2]]), "together"),
    "one child twice": ("random_forest", trees([[1, 1], [1, 1]]), "together"),
    "a child that is a root": ("random_forest", trees([[1, 2], [1, 1], [2, 2]], [0, 1]), "out of"),
    "too deep a tree": ("random_forest", chain(1001), "deeper than"),
    "too many trees": (
        "random_forest",
        trees([[node, node] for node in range(10_001)], range(10_001)),
        "more than 10,000",
    ),
}


KERNEL = "block/block5_conv3/kernel"
BLOCK_CHANGES: dict[str, tuple[Change, str]] = {
    "an unknown layer": (setting("layer", "block6_pool"), "vgg16 cannot be cut"),
    "a pooled layer": (setting("layer", "block5_conv2:avg"), "vgg16 cannot be cut"),
    "an earlier layer": (setting("layer", "block5_conv1"), "block5_conv2/bias has shape none"),
    "a later layer": (setting("layer", "block5_conv3"), "block5_conv3/bias has shape (512,);"),
    "another base": (in_spec(base="vgg19"), "block5_conv4/bias has shape none"),
    "another size": (in_spec(image_size=64), "its head takes 512 features; the layers"),
    "a size out of range": (in_spec(image_size=5000), "at most 4096"),
    "maps of a greater size": (in_spec(image_size=4096), "it takes 33,554,432 features, more"),
    "pooled maps": (setting("input", "pooled"), "its layers take 2,048 features; received 512"),
    "maps that are no maps": (setting("shape", [4096, 4096]), "received 16,777,216"),
    "no layer": (without("block/block5_conv3/bias"), "bias has shape none; expected (512,)"),
    "a layer more": (adding("block/conv_2/kernel"), "conv_2/kernel has shape (3,); expected none"),
    "a layer without a name": (adding("block/"), "expected none"),
    "an array beside it": (adding("conv_2/kernel"), "no use: conv_2/kernel"),
    "another shape": (array(KERNEL, lambda old: old[:2]), "has shape (2, 3, 512, 512); expected"),
    "another type": (array(KERNEL, lambda old: old.astype("f8")), "; expected float32"),
    "an empty array": (array(KERNEL, lambda old: old[:0]), "; expected float32"),
    "not finite": (array(KERNEL, each(np.nan)), "block5_conv3/kernel is not finite"),
    "beyond all bounds": (array(KERNEL, each(1e31)), "block5_conv3/kernel is beyond 1e+30"),
    "another head": (array("hidden_kernel", lambda old: old[1:]), "its head takes 511 features"),
    "a base of its own": (setting("classifier.base", "vgg16"), "other values"),
    "no probabilities": (setting("classifier.has_probabilities", False), "gives no"),
}


@pytest.mark.parametrize("name", BLOCK_CHANGES)
def test_a_fine_tuned_block_that_does_not_fit_its_base_is_refused(
    name: str, tmp_path: Path
) -> None:
    change, told = BLOCK_CHANGES[name]
    description, arrays = taken_apart(fit_top_block(), tmp_path)  # sound: see test_top_block.py
    change(description, arrays)
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode(description, arrays))
    assert told in refused(path)


def taken_apart(bundle: Bundle, folder: Path) -> tuple[dict[str, Any], Arrays]:
    """A sound bundle's description and arrays, free to be changed."""
    path = folder / "sound.safetensors"
    save_bundle(bundle, path)
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["bundle"])
    path.unlink()
    return description, arrays


@pytest.mark.parametrize("name", CHANGES)
def test_a_whole_bundle_that_does_not_fit_together_is_refused(name: str, tmp_path: Path) -> None:
    head, change, told = CHANGES[name]
    description, arrays = taken_apart(bundle_of(fit_head(head)), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode(description, arrays))
    load_bundle(path)  # it was sound
    change(description, arrays)
    path.write_bytes(encode(description, arrays))
    assert told in refused(path)


def test_trees_up_to_the_limits_are_taken(tmp_path: Path) -> None:
    description, arrays = taken_apart(bundle_of(fit_head("random_forest")), tmp_path)
    leaves = trees([[node, node] for node in range(10_000)], range(10_000))
    for change in (chain(1000), leaves):
        change(description, arrays)
        path = tmp_path / "model.safetensors"
        path.write_bytes(encode(description, arrays))
        scores = load_bundle(path).classifier.scores(np.zeros((3, 12), np.float32))
        np.testing.assert_array_equal(scores, np.full((3, 2), 0.5))


def test_no_room_is_made_for_arrays_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    description, arrays = taken_apart(bundle_of(fit_head("logistic")), tmp_path)
    hashed = Mock()
    for file, told in (
        (encode(description, arrays | {"weights": np.zeros((2, 12))}), "float64 (2, 12)"),
        (encode(description | {"classes": [1, 2]}, arrays), "different names"),
        (encode(description, arrays | {"more": np.zeros(9)}), "no use: more"),
    ):
        path.write_bytes(file)
        with monkeypatch.context() as patched:
            patched.setattr(bundle_module, "digest_of", hashed)  # of arrays that were read
            assert told in refused(path)
    assert not hashed.called


def test_a_file_of_holes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = 3 * 2**30
    with path.open("wb") as file:
        file.write(with_header(one_array([size // 8], size)))
        file.truncate(file.tell() + size)
    if not 0 < path.stat().st_blocks * 512 < size // 16:
        pytest.skip("this file system fills holes, or does not count blocks")
    assert "were ever written" in refused(path)
    with path.open("r+b") as file:
        file.truncate(5 * 2**30)
    assert "more than 4,294,967,296" in refused(path)


@pytest.mark.parametrize("head", ["svm_rbf", "knn"])
def test_a_flipped_bit_is_refused_wherever_it_is(head: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bundle = bundle_of(fit_head(head))
    save_bundle(bundle, path)
    sound = path.read_bytes()
    for place in np.linspace(0, 8 * len(sound) - 1, 400).astype(int):
        damaged = bytearray(sound)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        refused(path)
    for length in np.linspace(0, len(sound) - 1, 60).astype(int):
        path.write_bytes(sound[:length])
        refused(path)
    path.write_bytes(sound + b"\0")
    refused(path)
    path.write_bytes(sound)
    np.testing.assert_array_equal(scores_of(load_bundle(path)), scores_of(bundle))


def test_a_key_that_stands_twice_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    description, arrays = taken_apart(bundle_of(fit_head("logistic")), tmp_path)
    plain = json.dumps(description)
    for text in (
        plain.replace('"head":', '"head": "knn", "head":', 1),
        plain.replace('"format": 1', '"format": 1, "seconds": NaN', 1),
        plain.replace('"set": "drawn"', '"set": "drawn", "seconds": 1e999', 1),
        plain[:-1],
        "[" * 100_000,
    ):
        assert text != plain
        path.write_bytes(with_text(text, arrays))
        assert "of ours, or damaged" in refused(path)


def with_text(text: str, arrays: Arrays) -> bytes:
    """A bundle's file with any text in the place of its description, its digest right."""
    metadata = {"bundle": text, "sha256": digest_of(text, arrays)}
    return save(arrays, metadata)
