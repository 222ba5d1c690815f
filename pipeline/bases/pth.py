"""Read tensors from a ``.pth`` file without PyTorch and without executing its pickle.

The format is PyTorch's before 1.6: pickles of a magic number, a version, system information, the
tensors and the keys of their storages, then the storages as length and raw numbers. Each pickle
passes two allow-lists, of opcodes and of names, before anything in it is built.
"""

import io
import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # as in torch.serialization
PICKLES = 5
ITEM_TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}  # of torch
OPCODES = frozenset((  # those of pickle protocol 2 that such a file needs
    "PROTO", "STOP", "MARK", "LONG1", "BININT", "BININT1", "BININT2", "BINUNICODE", "NONE",
    "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD", "BINPERSID",
))  # fmt: skip


class _Storage(NamedTuple):
    item_type: str
    key: str
    length: int  # number of items


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in items


def read_pth(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a file by name, float32 or int64, in the order of the file.

    Raises BadDataError for another format, a pickle that names or does anything else, and tensors
    that declare more than the file contains.
    """
    try:
        return _read(content)
    except BadDataError:
        raise
    except Exception as error:  # a damaged pickle raises errors of many types
        raise BadDataError(
            f"the .pth file is damaged, or not in PyTorch's format before 1.6: {error!r:.99}"
        ) from error


def _read(content: bytes) -> dict[str, npt.NDArray[Any]]:
    stream = io.BytesIO(content)
    magic, version, _, tensors, keys = [_load_pickle(stream) for _ in range(PICKLES)]
    _require((magic, version) == (MAGIC, VERSION), "its magic number or version is another")
    _require(isinstance(tensors, Mapping) and isinstance(keys, list), "it holds no tensors")
    item_types = {tensor.storage.key: tensor.storage.item_type for tensor in tensors.values()}
    numbers = {}
    for key in keys:
        (length,) = struct.unpack("<q", stream.read(8))
        numbers[key] = (length, stream.tell())
        size = length * np.dtype(item_types[key]).itemsize
        is_inside = 0 <= size <= len(content) - stream.tell()
        _require(is_inside, f"storage {key} declares {length} items")
        stream.seek(size, io.SEEK_CUR)
    _require(stream.tell() == len(content), "it continues after its last storage")
    return {name: _to_array(tensor, numbers, content) for name, tensor in tensors.items()}


def _to_array(
    tensor: _Tensor, numbers: Mapping[str, tuple[int, int]], content: bytes
) -> npt.NDArray[Any]:
    (item_type, key, declared), offset, shape, strides = tensor
    length, position = numbers[key]
    last = offset + sum(side * step - step for side, step in zip(shape, strides, strict=True))
    is_inside = declared == length and min(offset, *shape, *strides, 0) == 0 and last < length
    is_inside = is_inside and math.prod(shape) <= length
    _require(is_inside, f"a tensor of shape {shape} is not inside its storage of {length} items")
    items = np.frombuffer(content, item_type, length, position)[offset:]
    steps = [items.itemsize * step for step in strides]
    return np.lib.stride_tricks.as_strided(items, shape, steps, writeable=False)


def _load_pickle(stream: io.BytesIO) -> Any:
    """Load the pickle at the position of a stream; the stream is then after it."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        _require(opcode.name in OPCODES, f"it has the pickle opcode {opcode.name}")
        # the memo is an array as long as the largest index in it
        if opcode.name == "LONG_BINPUT":
            is_possible = int(argument or 0) < len(stream.getbuffer())
            _require(is_possible, f"it declares {argument} values")
    return _Unpickler(io.BytesIO(stream.getvalue()[start : stream.tell()])).load()


class _Unpickler(pickle.Unpickler):
    """Build numbers, texts, lists, dicts, `_Storage` and `_Tensor`, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
            integers = (offset, *shape, *strides)
            is_valid = isinstance(storage, _Storage) and all(type(each) is int for each in integers)
            _require(is_valid, "a tensor has no storage or no shape")
            return _Tensor(storage, offset, tuple(shape), tuple(strides))

        if module == "torch" and name in ITEM_TYPES:
            return ITEM_TYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor  # a new function: BUILD could set attributes of a shared one
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise BadDataError(f"the .pth file is refused: it names {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, item_type, key, _, length, view = pid
        is_valid = kind == "storage" and item_type in ITEM_TYPES.values() and view is None
        is_valid = is_valid and type(key) is str and type(length) is int
        _require(is_valid, "a storage has another description")
        return _Storage(item_type, key, length)


def _require(is_valid: bool, reason: str) -> None:
    if not is_valid:
        raise BadDataError(f"the .pth file is refused: {reason}")
