"""A .onnx file from anywhere is measured, or refused in one line."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import assert_one_line, run_command
from onnx import TensorProto, helper, numpy_helper
from onnx_files import CHANNELS, SIZE, conv_nodes, token_nodes, write_onnx_file
from PIL import Image

from pipeline.bases.config import BaseConfig
from pipeline.bases.file_base import SIDECAR_KINDS, read_sidecar
from pipeline.bases.onnx_checks import load_checked
from pipeline.errors import BadDataError, UsageError

FILE = Path("net.onnx")


@pytest.fixture(scope="module")
def shared_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is opened once."""
    path = tmp_path_factory.mktemp("shared") / FILE
    write_onnx_file(path)
    return path


def external(model: Any, location: str, *, length: int = 864, offset: int = 0) -> Any:
    """Let the first weights of a model be in another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model


def declaring(model: Any, *dims: int) -> Any:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


def with_first_node(model: Any, kind: str, domain: str = "", **attributes: Any) -> Any:
    """Put a node before the network's first."""
    node = helper.make_node(kind, ["images"], ["changed"], domain=domain, **attributes)
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "changed"
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def in_a_cycle(model: Any) -> Any:
    model.graph.node[0].input[0] = "/pool"
    return model


def in_training(model: Any) -> Any:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, "f4"), "ratio"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node("Dropout", ["vector", "ratio", "yes"], ["dropped"])
    model.graph.node.append(node)
    return model


def function_of_another_domain(model: Any) -> Any:
    model = with_first_node(model, "Steal", domain="tools")
    body = [helper.make_node("ReadFile", ["x"], ["y"], domain="other")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("other", 1)]
    model.functions.append(helper.make_function("tools", "Steal", ["x"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("other", 1))
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: external(model, "../secret"), "not a plain file name"),
        (lambda model: external(model, "/etc/passwd"), "not a plain file name"),
        (lambda model: external(model, "..\\secret"), "not a plain file name"),
        (lambda model: external(model, "gone.bin"), "missing or a link"),
        (lambda model: external(model, "link.bin"), "missing or a link"),
        (lambda model: external(model, "short.bin"), "ends after its data file"),
        (lambda model: external(model, "long.bin", offset=-4), "ends after its data file"),
        (lambda model: external(model, "long.bin", length=10), "declares 864 bytes"),
        (lambda model: declaring(model, 2_500_000_000), "declares 10,000,000,000 bytes"),
        (lambda model: declaring(model, -1), "negative shape"),
        (lambda model: with_first_node(model, "Magic", domain="com.microsoft"), "com.microsoft"),
        (lambda model: with_first_node(model, "RandomNormalLike"), "is random"),
        (function_of_another_domain, "domain other"),
        (in_a_cycle, "not valid ONNX"),
        (in_training, "training mode"),
    ],
)  # fmt: skip
def test_hostile_file_is_refused(change: Callable[[Any], Any], reason: str) -> None:
    Path("secret").write_bytes(bytes(864))
    folder = Path("models")
    folder.mkdir()
    (folder / "short.bin").write_bytes(bytes(100))
    (folder / "long.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(Path("secret").resolve())
    model = change(write_onnx_file(folder / FILE))
    (folder / FILE).write_bytes(model.SerializeToString())
    with pytest.raises(BadDataError, match=reason):
        load_checked(folder / FILE)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" * 9, None])
def test_foreign_or_truncated_file_is_refused_in_one_line(content: bytes | None) -> None:
    write_onnx_file(FILE)
    FILE.write_bytes(FILE.read_bytes()[:-300] if content is None else content)
    finished = run_command("extract", "--list-layers", FILE, check=65)
    assert "net.onnx is refused: it is not an ONNX file" in assert_one_line(finished)


def test_maps_of_gigabytes_are_refused_in_one_line() -> None:
    nodes, arrays = conv_nodes()
    arrays.append(numpy_helper.from_array(np.array([1, 1, 500, 500]), "repeats"))
    nodes.insert(0, helper.make_node("Tile", ["images", "repeats"], ["huge"]))
    nodes[1].input[0] = "huge"
    write_onnx_file(FILE, nodes, arrays)
    finished = run_command("extract", "--list-layers", FILE, check=65)
    assert "it needs more than 4 GiB for one image" in assert_one_line(finished)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (("n", 1, SIZE, SIZE), "expected 3 channels"),
        (("n", 3, SIZE, 48), "expected a square"),
        (("n", 3), "has 2 axes; expected 4"),
    ],
)
def test_file_that_takes_no_square_rgb_images_is_refused(
    shape: tuple[Any, ...], reason: str
) -> None:
    write_onnx_file(FILE, shape=shape)
    with pytest.raises(BadDataError, match=reason):
        BaseConfig(base="net.onnx", mean_std="unit")


def test_file_with_two_inputs_is_refused() -> None:
    other = helper.make_tensor_value_info("text", TensorProto.FLOAT, [1])
    write_onnx_file(FILE, inputs=[other])
    with pytest.raises(BadDataError, match=r"expected one input, .* it has 2: images, text"):
        BaseConfig(base="net.onnx", mean_std="unit")


def test_layers_are_listed_with_measured_shapes() -> None:
    write_onnx_file(FILE, shape=("n", 3, "h", "w"))
    refused = run_command("extract", "--list-layers", FILE, check=2)
    assert "choose that of its training with --image-size" in assert_one_line(refused)
    listed = json.loads(
        run_command("extract", "--list-layers", FILE, "--image-size", "48", "--json").stdout
    )
    assert [(layer["name"], layer["shape"]) for layer in listed] == [
        ("conv", [24, 24, CHANNELS]),
        ("relu", [24, 24, CHANNELS]),
        ("pool", [12, 12, CHANNELS]),
        ("average", [1, 1, CHANNELS]),
        ("vector", [CHANNELS]),
    ]
    text = run_command("extract", "--list-layers", FILE, "--image-size", "48").stdout
    assert text.endswith("default: pool\n")


def test_default_layer_is_the_last_map_or_the_last_tokens() -> None:
    write_onnx_file(FILE)
    write_onnx_file(Path("vit.onnx"), *token_nodes(), rows=(17, CHANNELS))
    for name, layer, shape in (("net", "pool", (8, 8, 8)), ("vit", "vector", (17, 8))):
        config = BaseConfig(base=f"{name}.onnx", mean_std="unit")
        (chosen,) = config.file_layers(())
        assert (chosen.name, chosen.shape) == (layer, shape)


def test_patches_without_class_token_need_the_option() -> None:
    write_onnx_file(FILE, *token_nodes(class_token=False), rows=(16, CHANNELS))
    config = BaseConfig(base="net.onnx", mean_std="unit")
    with pytest.raises(UsageError, match="4 × 4 patches and no class token: choose --tokens"):
        config.file_layers(["vector"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "--mean-std is missing: choose imagenet, half"),
        ({"mean_std": "0.5,0.5"}, r"m,m,m/s,s,s; received"),
        ({"mean_std": "1/0"}, "three above 0"),
        ({"mean_std": "unit", "layout": "nhwc"}, "has the layout nchw; received --layout nhwc"),
        ({"mean_std": "unit", "image_size": 48}, "takes images of 32 pixels; .* 48"),
        ({"mean_std": "unit", "weights": "random"}, "contains its weights"),
        ({"mean_std": "unit", "preprocessing": "rescale"}, "use --mean-std"),
        ({"mean_std": "unit", "engine": "ncnn"}, "cannot run .*net.onnx"),
        ({"mean_std": "unit", "base": "pixels"}, "is for a base in a file"),
    ],
)
def test_wrong_options_are_usage_errors(
    shared_file: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        _ = BaseConfig(**({"base": shared_file} | options)).file_options


def test_sidecar_of_the_page_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ONNX.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    Path("net.base.toml").write_text(text)
    assert read_sidecar(FILE).keys() == SIDECAR_KINDS.keys() - {"layout", "tokens"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mean-std", "is not TOML"),
        ('mean_std = "unit"', "did you mean mean-std"),
        ("mean-std = 1", "mean-std is a text"),
        ('mean-std = "half', "is not TOML"),
        ('mean-std = "0/0"', "three above 0"),
        ('resize = "stretch"', "one of squash, crop, pad"),
        ("image-size = 0", "from 1"),
        ('[probe]\nimage = "../a.png"\nexpected = [1]', "plain file name"),
        ('[probe]\nimage = "a.png"', "needs an image, expected"),
    ],
)
def test_wrong_sidecar_is_refused(text: str, reason: str) -> None:
    Path("net.base.toml").write_text(text)
    with pytest.raises(BadDataError, match=reason):
        read_sidecar(FILE)


def test_sidecar_has_the_options_and_the_command_line_overrides_it() -> None:
    write_onnx_file(FILE, shape=("n", 3, "h", "w"))
    Path("net.base.toml").write_text(
        'mean-std = "clip"\nchannels = "bgr"\nimage-size = 64\nresize = "crop"\n'
        'licence = "MIT"\nsource = "here"\n'
    )
    config = BaseConfig(base="net.onnx")
    assert config.preprocessing_text == "onnx mean_std=clip channels=bgr layout=nchw tokens=cls"
    assert (config.size, config.resize) == (64, "crop")
    changed = BaseConfig(base="net.onnx", mean_std="half", image_size=32, resize="pad")
    assert "mean_std=half" in changed.preprocessing_text
    assert (changed.size, changed.resize) == (32, "pad")


def test_probe_of_the_sidecar_is_checked_at_every_open() -> None:
    model = write_onnx_file(FILE)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("probe.png")
    import onnxruntime

    model.graph.output.append(onnx.ValueInfoProto(name="/pool"))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = (pixels.astype("f4") / 255).transpose(2, 0, 1)[np.newaxis]
    (maps,) = session.run(["/pool"], {"images": values})
    numbers = ", ".join(map(repr, maps.mean(axis=(2, 3))[0].tolist()))
    text = f'mean-std = "unit"\n[probe]\nimage = "probe.png"\nexpected = [{numbers}]\n'
    Path("net.base.toml").write_text(text)
    assert BaseConfig(base="net.onnx").measured.default == "pool"
    Path("net.base.toml").write_text(text.replace("unit", "half"))
    os.utime(FILE, (0, 0))  # opened again
    with pytest.raises(BadDataError, match="has other features than expected"):
        _ = BaseConfig(base="net.onnx").measured
