"""Write the images of a folder with split folders in other layouts."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

Member = tuple[str, bytes]


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def files_of(root: Path) -> list[tuple[str, str, str, bytes]]:
    """Return split, class, name and content of each image."""
    return [(*path.parts[-3:], path.read_bytes()) for path in sorted(root.rglob("*.png"))]


def tar_of_folders(root: Path, target: Path) -> Path:
    """Write one tar file as `tar` does: the folder with its class folders."""
    name = target / "archive.tar"
    return write_tar(
        name,
        [(f"./pets/{split}/{label}/{file}", data) for split, label, file, data in files_of(root)],
    )


def webdataset(root: Path, target: Path) -> Path:
    """Write ``train-0000.tar`` and so on: ``key.png`` and ``key.cls``, with the class names."""
    files = files_of(root)
    classes = sorted({label for _, label, _, _ in files})
    for split in {file[0] for file in files}:
        of_split = [file for file in files if file[0] == split]
        for shard in range(2):
            members: list[Member] = []
            for number, (_, label, _, data) in enumerate(of_split[shard::2]):
                members += [
                    (f"{shard}{number:05d}.png", data),
                    (f"{shard}{number:05d}.cls", str(classes.index(label)).encode()),
                    (f"{shard}{number:05d}.txt", b"a caption of image %d" % number),
                ]
            write_tar(target / "wds" / f"{split}-{shard:04d}.tar", members)
    (target / "wds" / "classnames.txt").write_text("\n".join(classes) + "\n")
    return target / "wds"


def _table(files: Iterable[tuple[str, str, str, bytes]], classes: list[str]) -> pa.Table:
    features = {
        "picture": {"_type": "Image"},
        "label": {"names": classes, "_type": "ClassLabel"},
    }
    rows = list(files)
    table = pa.table(
        {
            "picture": [{"bytes": data, "path": name} for *_, name, data in rows],
            "label": [classes.index(label) for _, label, _, _ in rows],
        }
    )
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def _by_split(root: Path) -> dict[str, pa.Table]:
    files = files_of(root)
    classes = sorted({label for _, label, _, _ in files})
    splits = sorted({file[0] for file in files})
    return {each: _table([file for file in files if file[0] == each], classes) for each in splits}


def parquet_of_datasets(root: Path, target: Path) -> Path:
    """Write Parquet files as `datasets.Dataset.to_parquet`, in row groups of five rows."""
    (target / "hf" / "data").mkdir(parents=True)
    for split, table in _by_split(root).items():
        path = target / "hf" / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(table, path, row_group_size=5)
    (target / "hf" / "README.md").write_text("---\nlicense: mit\n---\n")
    return target / "hf"


def arrow_of_datasets(root: Path, target: Path) -> Path:
    """Write Arrow files as `datasets.DatasetDict.save_to_disk`."""
    for split, table in _by_split(root).items():
        folder = target / "arrow" / split
        folder.mkdir(parents=True)
        path = folder / "data-00000-of-00001.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        (folder / "state.json").write_text("{}")
    (target / "arrow" / "dataset_dict.json").write_text("{}")
    return target / "arrow"


LAYOUTS: list[Callable[[Path, Path], Path]] = [
    tar_of_folders,
    webdataset,
    parquet_of_datasets,
    arrow_of_datasets,
]
