"""Tensors are read from PyTorch's old format; whatever else a pickle asks for is refused."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.bases.pth import MAGIC, VERSION, read_pth
from pipeline.errors import BadDataError

KERNEL = np.arange(24, dtype="<f4").reshape(2, 3, 4)
COUNTER = np.array(7, "<i8")


def opcodes(value: object) -> bytes:
    """Return a pickle without its frame, to be part of another."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(key: str, kind: str, length: int) -> bytes:
    parts = [opcodes("storage"), f"ctorch\n{kind}\n".encode(), opcodes(key), opcodes("cpu")]
    return b"(" + b"".join(parts) + opcodes(length) + b"NtQ"


def tensor(
    source: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    arguments = source + opcodes(offset) + opcodes(shape) + opcodes(strides) + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


FLOATS = storage("a", "FloatStorage", 24)
TENSORS = {
    "kernel": tensor(FLOATS, (2, 3, 4), (12, 4, 1)),
    "turned": tensor(FLOATS, (4, 6), (1, 4)),
    "part": tensor(FLOATS, (3,), (1,), offset=20),
}


def make_file(
    tensors: bytes = b"".join(opcodes(name) + value for name, value in TENSORS.items()),
    *,
    magic: int = MAGIC,
    length: int = 24,
    end: bytes = b"",
) -> bytes:
    head = b"".join(pickle.dumps(each, protocol=2) for each in (magic, VERSION, {}))
    counter = opcodes("counter") + tensor(storage("b", "LongStorage", 1), (), ())
    head += b"\x80\x02ccollections\nOrderedDict\n)R(" + tensors + counter + b"u}("
    head += opcodes("_metadata")
    head += b"}ub." + pickle.dumps(["a", "b"], protocol=2)
    numbers = struct.pack("<q", length) + KERNEL.tobytes() + struct.pack("<q", 1)
    return head + numbers + COUNTER.tobytes() + end


def test_tensors_have_their_numbers_shapes_and_types() -> None:
    tensors = read_pth(make_file())
    assert list(tensors) == [*TENSORS, "counter"]
    np.testing.assert_array_equal(tensors["kernel"], KERNEL)
    np.testing.assert_array_equal(tensors["turned"], KERNEL.reshape(6, 4).T)
    np.testing.assert_array_equal(tensors["part"], [20, 21, 22])
    assert tensors["counter"] == 7
    assert tensors["counter"].dtype == np.int64


CALLS = {
    "os.system": b"cos\nsystem\n(" + opcodes("touch called") + b"tR",
    "posix.system": b"cposix\nsystem\n(" + opcodes("touch called") + b"tR",
    "__builtin__.getattr": b"c__builtin__\ngetattr\n(c__builtin__\nopen\n" + opcodes("x") + b"tR",
    "builtins.eval": b"cbuiltins\neval\n(" + opcodes("open('called', 'w')") + b"tR",
    "torch.FloatStorage.__class__": b"ctorch\nFloatStorage.__class__\n",
    "torch._utils.a.__globals__": b"ctorch._utils\na.__globals__\n",
    "numpy.load": b"cnumpy\nload\n",
}


@pytest.mark.parametrize("name", CALLS)
def test_pickle_that_names_something_else_is_refused_and_calls_nothing(name: str) -> None:
    with pytest.raises(BadDataError, match=f"it names {name}$"):
        read_pth(make_file(opcodes("kernel") + CALLS[name]))
    assert not Path("called").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (make_file(length=25), "storage b declares"),  # reads on inside the numbers
        (make_file(length=2**60), "storage a declares 1152921504606846976 items"),
        (make_file(length=-1), "storage a declares -1 items"),
        (make_file(end=b"\0"), "continues after its last storage"),
        (make_file(magic=1), "magic number"),
        (make_file(opcodes("x") + tensor(FLOATS, (25,), (1,))), "not inside its storage"),
        (make_file(opcodes("x") + tensor(FLOATS, (2, 3), (23, 1))), "not inside its storage"),
        (make_file(opcodes("x") + tensor(FLOATS, (9**9,), (0,))), "not inside its storage"),
        (make_file(opcodes("x") + tensor(FLOATS, (3,), (-1,), 5)), "not inside its storage"),
        (make_file(opcodes("x") + tensor(FLOATS, (3,), (1,), -1)), "not inside its storage"),
        (make_file(opcodes("x") + tensor(opcodes("a"), (3,), (1,))), "no storage"),
        (make_file(opcodes("x") + b"r\xff\xff\xff\xff"), "declares 4294967295 values"),
        (make_file(opcodes("x") + b"S'text'\n"), "opcode STRING"),
        (make_file(opcodes("x") + b"\x96" + struct.pack("<q", 2**40)), "damaged|opcode"),
        (make_file(opcodes("x") + opcodes(3)), "damaged"),
        (b"PK\x03\x04 PyTorch's zip format", "damaged"),
        (b"", "damaged"),
    ],
)
def test_file_that_declares_more_than_it_holds_is_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(BadDataError, match=reason) as refused:
        read_pth(content)
    assert "\n" not in str(refused.value)


def test_truncated_and_changed_files_give_tensors_or_one_line() -> None:
    content = make_file()
    for end in range(len(content)):
        with pytest.raises(BadDataError):
            read_pth(content[:end])
    rng = np.random.default_rng(0)
    for _ in range(500):
        broken = bytearray(content)
        broken[rng.integers(len(broken))] ^= int(rng.integers(1, 256))
        try:
            read_pth(bytes(broken))
        except BadDataError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
