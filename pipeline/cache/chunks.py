"""Chunks of features, packed here instead of by HDF5: the same format, ten times as fast.

HDF5's gzip filter packs 35 MB/s of features without zeros, less than EfficientNetB0 makes of
photographs. Readers see what its own filters could have left: deflated data with HDF5's Fletcher-32
checksum behind it, or, where deflating is no use, plain data with theirs and a note of that.
"""

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

try:
    from isal.isal_zlib import compress
except ImportError:  # there is none for this processor
    from zlib import compress

LEVEL = 1  # suits ReLU maps: 84 % zeros, 131 MB of them make 30 MB; higher ones bring little
_NOT_DEFLATED = 1  # bit of the first filter
_SAMPLES, _SAMPLE_BYTES = 8, 2**14  # of a chunk, to see whether deflating it is of use
_WORTH = 0.85  # of its size, at most, that it then has: it costs more to read
_WORDS = 2**15  # of 16 bits, summed at a time: their weighted sum is exact in float64


def pack(rows: npt.NDArray[Any]) -> bytes | None:
    """Deflate, in zlib's format; None where that is of no use, judged by samples."""
    data = np.ascontiguousarray(rows).data.cast("B")
    step = max(_SAMPLE_BYTES, len(data) // _SAMPLES)
    sample = b"".join(data[at : at + _SAMPLE_BYTES] for at in range(0, len(data), step))
    if len(compress(sample, LEVEL)) > _WORTH * len(sample):
        return None
    return bytes(compress(data, LEVEL))


def write_chunk(dataset: h5py.Dataset, start: int, rows: npt.NDArray[Any]) -> None:
    """Write rows as the chunk that begins at row ``start``; zeros fill up a dataset's last one.

    Close and reopen the file to read it: until then HDF5 goes by the filters that it expected.
    """
    size, *row_shape = dataset.chunks
    if start % size or len(rows) > size or list(rows.shape[1:]) != row_shape:
        raise ValueError(f"rows {rows.shape} from {start} on are no chunk {dataset.chunks}")
    whole = np.zeros(dataset.chunks, dataset.dtype)
    whole[: len(rows)] = rows
    packed = pack(whole)
    data = whole.tobytes() if packed is None else packed
    checksum = fletcher32(data).to_bytes(4, "little")
    left_out = _NOT_DEFLATED if packed is None else 0
    origin = (start, *(0 for _ in row_shape))
    dataset.id.write_direct_chunk(origin, data + checksum, left_out)


def fletcher32(data: bytes | memoryview) -> int:
    """HDF5's checksum: sums of big-endian 16-bit words, an odd last byte filled up by a zero."""
    words = np.frombuffer(data, ">u2", len(data) // 2)
    weights = np.arange(_WORDS, 0, -1, dtype=np.float64)
    plain = weighted = 0
    for start in range(0, len(words), _WORDS):
        block = words[start : start + _WORDS].astype(np.float64)
        weighted += len(block) * plain + int((block * weights[_WORDS - len(block) :]).sum())
        plain += int(block.sum())
    if len(data) % 2:
        plain += data[-1] << 8
        weighted += plain
    return _folded(weighted) << 16 | _folded(plain)


def _folded(number: int) -> int:
    """In ones' complement, where only zero itself is 0."""
    return (number - 1) % 0xFFFF + 1 if number else 0
