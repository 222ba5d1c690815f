"""Classify images with the model beside this file: python predict.py IMAGE… [--csv FILE]

An IMAGE is a file, a folder or a pattern such as 'photos/*.jpg'. In Python: ``from predict import
predict``. Needs Pillow, NumPy, and onnxruntime for model.onnx, ai-edge-litert for model.tflite or
keras with tensorflow for model.keras. Images are decoded and resized as in training: another
decoder or filter changes the predictions.
"""

import argparse
import csv
import glob
import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

try:
    import numpy as np
    from PIL import Image, ImageOps
except ImportError as error:
    sys.exit(f"{error.name} is missing: pip install numpy pillow")

# The formats of the training. EPS would run Ghostscript; TGA accepts nearly any bytes.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "HEIF", "PPM", "ICO",
           "DIB", "QOI", "PCX", "SGI")  # fmt: skip
MAX_MEMORY = 240_000_000  # bytes for decoding: 60 megapixels of colour
BYTES_PER_PIXEL = {"1": 1, "L": 1, "RGB": 4, "YCbCr": 4, "I;16": 6, "I;16B": 6}
BYTES_PER_OTHER_PIXEL, BYTES_PER_COLOUR_16 = 9, 20
# Files and folders that systems and programs create beside images, besides hidden ones
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin",
        "system volume information"}  # fmt: skip
EXIF_ORIENTATION = 0x0112
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
# libtiff decompresses to the byte order of this computer; Pillow expects that of the file.
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
GREY_SCALES = {"L;2": 85, "L;4": 17}  # of small numbers to 8 bits


@cache
def open_model() -> tuple[list[str], dict[str, Any], Any]:
    """Return class names, the image spec, and the model: (B, H, W, 3) uint8 -> (B, K) float32."""
    folder, names = Path(__file__).parent, ("model.onnx", "model.tflite", "model.keras")
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"there is no {', '.join(names)} in {folder}")
    if path.suffix == ".onnx":
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # sends no usage reports
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(path),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["Pad_Fusion"],  # wrong for negative numbers before max pooling
        )
        about = session.get_modelmeta().custom_metadata_map
        classes, spec = json.loads(about["classes"]), json.loads(about["spec"])
        fixed = session.get_inputs()[0].shape[0]  # images per run, or a name if any number

        def run(images: Any) -> Any:
            size = fixed if isinstance(fixed, int) else len(images)
            parts = [images[start : start + size] for start in range(0, len(images), size)]
            full = [np.resize(part, (size, *part.shape[1:])) for part in parts]
            rows = [session.run(None, {"images": part})[0] for part in full]
            return np.concatenate(rows)[: len(images)]

        return classes, spec, run
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("classifier.json"))
    if path.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=os.cpu_count())
        with silence():
            interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner()

        def classify_each(images: Any) -> Any:  # the model takes one image
            return np.concatenate([runner(images=image[None])["probabilities"] for image in images])

        return about["classes"], about["spec"], classify_each
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no messages about the processor
    print("loading TensorFlow", file=sys.stderr, flush=True)  # 15 s
    with silence():
        import keras

        model = keras.models.load_model(path)
    return about["classes"], about["spec"], lambda images: model.predict(images, verbose=0)


@contextmanager
def silence() -> Iterator[None]:
    """Discard what C++ code prints on stderr while a model loads."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def decode(path: str, size: int, resize: str, value_range: str = "full") -> Any:
    """Read an image file: upright, RGB, square -> (size, size, 3) uint8.

    ``value_range`` : the numbers that become 0 and 255 in files of over 8 bits, signed numbers or
    floats, ``LOW,HIGH``; or ``full``, the range of their type.
    """
    with Image.open(path, formats=known_formats()) as image:
        if raw_mode(image) in GREY_SCALES and "transparency" in image.info:
            image.info["transparency"] *= GREY_SCALES[raw_mode(image)]  # Pillow forgets it
        numbers = numbers_of(image)
        is_colour = len(image.getbands()) > 1
        is_exact = value_range != "full" or "transparency" in image.info
        low = low_bytes(image, path) if numbers and is_colour and is_exact else None
        if raw_mode(image) in NATIVE and image.tile[0].codec_name == "libtiff":
            set_raw_mode(image, NATIVE[raw_mode(image)])
        memory = BYTES_PER_PIXEL.get(image.mode, BYTES_PER_OTHER_PIXEL)
        memory = image.width * image.height * (memory if low is None else BYTES_PER_COLOUR_16)
        if memory > MAX_MEMORY or (2 * memory > MAX_MEMORY and is_turned(image)):
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        turned = upright(image)
    if low is not None:
        values = np.asarray(turned).astype(np.uint16) << 8 | np.asarray(upright(low))
        rgb = scale(turned, values, numbers, value_range)
    elif numbers and not is_colour:
        rgb = scale(turned, np.asarray(turned), numbers, value_range)
    else:  # Pillow reads the high bytes of 16-bit colours
        rgb = to_rgb(turned)
    if resize == "crop":
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    elif resize == "pad":
        rgb = ImageOps.pad(rgb, (size, size), Image.Resampling.BILINEAR, color=0)
    else:
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb.convert("RGB"))


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
    try:  # of a PNG, `getexif` may decode the image
        known = image.format != "PNG" or "exif" in image.info
        return known and bool(image.getexif().get(EXIF_ORIENTATION, 1) != 1)
    except Exception:
        return False


def upright(image: Image.Image) -> Image.Image:
    """Rotate an image as in its EXIF block; ignore a broken one."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def numbers_of(image: Any) -> tuple[str, int, float, float, bool] | None:
    """Return kind, bits, lowest and highest number of a file, and whether the lowest is white.

    None for unsigned numbers of up to 8 bits. Call it before the image is loaded.
    """
    kind, bits, is_inverted = ("float", 32, False) if image.mode == "F" else ("uint", 16, False)
    if image.format == "TIFF":
        tags = image.tag_v2
        bits = tags.get(BITS_PER_SAMPLE, (1,))[0]
        kind = {2: "int", 3: "float"}.get(tags.get(SAMPLE_FORMAT, (1,))[0], "uint")
        if kind == "uint" and bits <= 8:
            return None
        is_inverted = tags.get(PHOTOMETRIC) == 0
        if len(image.getbands()) > 1 and ";16" not in raw_mode(image):
            raise ValueError("planar 16-bit colours, which Pillow misreads")
    elif not image.mode.startswith(("I", "F")) and ";16" not in raw_mode(image):
        return None
    if kind == "float":
        return kind, bits, 0, 1, is_inverted
    offset = 2 ** (bits - 1) if kind == "int" else 0
    return kind, bits, -offset, 2**bits - 1 - offset, is_inverted


def raw_mode(image: Any) -> str:
    """Return Pillow's name of the layout of pixels in the file."""
    if not image.tile:
        return ""
    arguments = image.tile[0].args
    if image.tile[0].codec_name == "ppm" and arguments == ("RGB", 65535):
        return "RGB;16B"  # Pillow scales it to 8 bits
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def set_raw_mode(image: Any, mode: str) -> None:
    """Let Pillow decode the pixels as another layout."""

    def changed(tile: Any) -> Any:
        if tile.codec_name == "ppm":
            return tile._replace(codec_name="raw", args=(mode, 0, 1))
        return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))

    image.tile = [changed(tile) for tile in image.tile]


def low_bytes(image: Any, path: str) -> Any:
    """Return an image that loads the low bytes of 16-bit colours: Pillow loads the high ones."""
    layout, _, order = raw_mode(image).rpartition(";16")
    is_planar = image.format == "TIFF" and image.tag_v2.get(PLANAR) == 2
    if layout not in ("RGB", "RGBA", "RGBX") or is_planar:
        raise ValueError(f"16-bit numbers ({image.mode}) of which Pillow reads the high byte only")
    set_raw_mode(image, raw_mode(image))
    swapped = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    low = Image.open(path, formats=known_formats())
    set_raw_mode(low, f"{layout};16{swapped[order]}")
    return low


def scale(image: Image.Image, values: Any, numbers: Any, value_range: str) -> Image.Image:
    """Scale numbers to 0..255: Pillow would clip them to white; put transparency on white."""
    kind, bits, low, high, is_inverted = numbers
    if (kind, bits) in (("int", 8), ("uint", 32)):  # Pillow has uint8 and int32 only
        values = values.view(f"{kind}{bits}")
    if value_range != "full":
        low, high = map(float, value_range.split(","))
    wide = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    if value_range == "full" and (wide.min() < low or wide.max() > high):
        raise ValueError(f"floats from {wide.min():g} to {wide.max():g}, outside 0 to 1")
    scaled = np.rint((wide - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    if is_inverted:
        scaled = 255 - scaled
    if (key := image.info.get("transparency")) is not None:
        scaled[values == key if values.ndim == 2 else (values == key).all(axis=2)] = 255
    rgb = Image.fromarray(scaled)
    return on_white(rgb, image.getchannel("A")) if rgb.mode == "RGBA" else rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Put transparency on white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return on_white(rgba, rgba)
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def on_white(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Lay an image over white."""
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=mask)
    return canvas


def classify(paths: Sequence[str], batch_size: int = 8) -> Iterator[tuple[str, Any]]:
    """Yield each path with its class probabilities (K,), or with the error of reading it."""
    _, spec, run = open_model()
    options = spec["image_size"], spec["resize"], spec.get("range", "full")

    def read(path: str) -> Any:
        try:
            return decode(path, *options)
        except Exception as error:  # Pillow raises any exception for broken files
            return error

    for start in range(0, len(paths), batch_size):
        batch = [(path, read(path)) for path in paths[start : start + batch_size]]
        images = [image for _, image in batch if not isinstance(image, Exception)]
        rows = iter(run(np.stack(images)) if images else ())
        for path, image in batch:
            yield path, image if isinstance(image, Exception) else next(rows)


def predict(paths: Sequence[str], batch_size: int = 8) -> Any:
    """Return class probabilities (n, K) of image files; ``open_model()[0]`` names the classes."""
    results = [result for _, result in classify(paths, batch_size)]
    for error in results:
        if isinstance(error, Exception):
            raise error
    return np.stack(results)


def find_files(names: Sequence[str]) -> list[str]:
    """Return the files of names: of folders all visible files below them; of patterns the matches.

    The command line of Windows does not expand patterns.
    """
    files: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            below = [file for file in path.rglob("*") if file.is_file()]
            images = (file for file in below if not any(map(is_junk, file.relative_to(path).parts)))
            files += sorted(map(str, images))
        elif not path.exists() and (matches := glob.glob(name, recursive=True)):  # noqa: PTH207
            files += find_files(sorted(match for match in matches if not is_junk(Path(match).name)))
        else:
            files.append(name)
    return list(dict.fromkeys(files))


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that systems create beside images."""
    return name.startswith(".") or name.lower() in JUNK


def printable(text: object) -> str:
    """Escape the control characters of a name."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def main() -> int:
    """Print a line for each image; return 1 if a file was skipped."""
    parser = argparse.ArgumentParser(
        description="Classify images. Prints path, class and probability, separated by tabs.",
        epilog="Exit code: 0 all files classified, 1 some skipped, 2 wrong usage.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or '*.jpg'")
    parser.add_argument("--csv", metavar="FILE", help="also write a CSV file (UTF-8)")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    files = find_files(arguments.images)
    if not files:
        parser.error(f"no files in {', '.join(map(printable, arguments.images))}")
    readable = [name for name in files if Path(name).exists()]
    for name in sorted(set(files) - set(readable)):
        is_url = name.startswith(("http://", "https://"))
        problem = "is not fetched: download it first" if is_url else "does not exist"
        print(printable(name), "skipped", problem, sep="\t", file=sys.stderr)
    skipped = len(files) - len(readable)
    if not readable:
        return 1
    try:
        classes, _, _ = open_model()
        table = Path(arguments.csv or os.devnull).open(  # noqa: SIM115
            "w", encoding="utf-8", errors="surrogateescape", newline=""
        )
    except ImportError as error:
        name = str(error.name).partition(".")[0].replace("_", "-")
        parser.error(f"{name} is missing: pip install {name}")
    except (OSError, ValueError, zipfile.BadZipFile) as error:  # such as of a cut-off model
        parser.error(printable(error))
    with table:
        writer = csv.writer(table)
        writer.writerow(["path", "label", "probability"])
        for path, result in classify(readable):
            if isinstance(result, Exception):
                skipped += 1
                print(printable(path), "skipped", printable(result), sep="\t", file=sys.stderr)
                continue
            best = int(result.argmax())
            writer.writerow([path, classes[best], f"{result[best]:.6f}"])
            print(printable(path), printable(classes[best]), f"{result[best]:.4f}", sep="\t")
    if skipped:
        print(f"{skipped} of {len(files)} files skipped", file=sys.stderr)
    return int(skipped > 0)


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # as of `| head`; Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
