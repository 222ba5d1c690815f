"""The one place that imports TensorFlow and Keras: quietly, and with the TensorFlow backend.

Importing this module takes 6 to 7 s, so only files that need a network do it, and only when
they run.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # notes about CUDA and oneDNN are not for users


@contextlib.contextmanager
def _native_stderr_silenced() -> Iterator[None]:
    """Drop what C++ code prints on file descriptor 2 before TensorFlow's log level takes effect."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:  # noqa: PTH123 - a device, not a path
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


logging.getLogger(__name__).info("loading TensorFlow, which takes some seconds")
with _native_stderr_silenced():
    import keras
    import tensorflow as tf

    tf.get_logger().setLevel(logging.ERROR)  # each fit compiles anew, and it would warn
    tf.config.list_physical_devices()  # the first look for devices prints its notes here

__all__ = ["keras", "tf"]
