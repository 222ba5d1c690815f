"""Classify images with the model beside this file: python predict.py IMAGE…

In Python: ``from predict import predict``. Needs Pillow, NumPy, and onnxruntime for model.onnx or
keras with tensorflow for model.keras. Images are decoded and resized as in training: another
decoder or filter changes the predictions.
"""

import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# The formats of the training. EPS would run Ghostscript; TGA accepts nearly any bytes.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "HEIF", "PPM", "ICO",
           "DIB", "QOI", "PCX", "SGI")  # fmt: skip
MAX_MEMORY = 240_000_000  # bytes for decoding: 60 megapixels of colour
BYTES_PER_PIXEL = {"1": 1, "L": 1, "RGB": 4, "YCbCr": 4, "I;16": 6, "I;16B": 6}
BYTES_PER_OTHER_PIXEL = 8
EXIF_ORIENTATION = 0x0112


@cache
def open_model() -> tuple[list[str], dict[str, Any], Any]:
    """Return class names, the image spec, and the model: (B, H, W, 3) uint8 -> (B, K) float32."""
    path = Path(__file__).with_name("model.onnx")
    if path.exists():
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # sends no usage reports
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(path),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["Pad_Fusion"],  # wrong for negative numbers before max pooling
        )
        about = session.get_modelmeta().custom_metadata_map
        classes, spec = json.loads(about["classes"]), json.loads(about["spec"])
        return classes, spec, lambda images: session.run(None, {"images": images})[0]
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no messages about the processor
    import keras

    path = path.with_suffix(".keras")
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("classifier.json"))
    model = keras.models.load_model(path)
    return about["classes"], about["spec"], lambda images: model.predict(images, verbose=0)


def decode(path: str, size: int, resize: str) -> Any:
    """Read an image file: upright, RGB, square -> (size, size, 3) uint8."""
    with Image.open(path, formats=known_formats()) as image:
        memory = image.width * image.height
        memory *= BYTES_PER_PIXEL.get(image.mode, BYTES_PER_OTHER_PIXEL)
        if memory * (1 + is_turned(image)) > MAX_MEMORY:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.load()
        rgb = to_rgb(upright(image))
    if resize == "crop":
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    elif resize == "pad":
        rgb = ImageOps.pad(rgb, (size, size), Image.Resampling.BILINEAR, color=0)
    else:
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


@cache
def known_formats() -> list[str]:
    """Return the readable ones of FORMATS; HEIC needs pillow_heif."""
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_turned(image: Image.Image) -> bool:
    """Return whether `upright` needs memory for a second image; no if EXIF is broken."""
    try:
        return bool(image.getexif().get(EXIF_ORIENTATION, 1) != 1)
    except Exception:
        return False


def upright(image: Image.Image) -> Image.Image:
    """Rotate an image as in its EXIF block; ignore a broken one."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Put transparency on white; scale 16- and 32-bit grey to 8 bits, which Pillow would clip."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float32))
        low, high = 0.0, 65535.0 if values.max() <= 65535 else 2.0**32 - 1
        if image.mode == "F":
            is_scaled = values.min() >= 0 and values.max() <= 1
            low, high = (0.0, 1.0) if is_scaled else (float(values.min()), float(values.max()))
        values = (values - low) * (255 / max(high - low, 1e-12))
        image = Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    return image.convert("RGB")


def predict(paths: Sequence[str], batch_size: int = 8) -> Any:
    """Return class probabilities (n, K) of image files; ``open_model()[0]`` names the classes."""
    _, spec, run = open_model()
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    images = ([decode(path, spec["image_size"], spec["resize"]) for path in b] for b in batches)
    return np.concatenate([run(np.stack(batch)) for batch in images])


def printable(text: object) -> str:
    """Escape the control characters of a name."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    classes, _, _ = open_model()
    for path in sys.argv[1:]:
        try:
            (probabilities,) = predict([path])
        except Exception as error:  # Pillow raises any exception for broken files
            print(printable(path), "skipped", printable(error), sep="\t", file=sys.stderr)
            continue
        best = int(probabilities.argmax())
        print(printable(path), printable(classes[best]), f"{probabilities[best]:.4f}", sep="\t")
