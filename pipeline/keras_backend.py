"""Import TensorFlow and Keras, here only: without their notes, and with the TensorFlow backend.

The import takes 6 to 7 s: only modules that need a network import this one, and only when they run.
"""

import logging
import os

from pipeline.silence import silenced_stderr

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides notes about CUDA and oneDNN


logging.getLogger(__name__).info("loading TensorFlow (some seconds)")
with silenced_stderr():  # until TensorFlow's log level has an effect
    import keras
    import tensorflow as tf

    tf.get_logger().setLevel(logging.ERROR)  # it warns of functions that each fit compiles again
    tf.config.list_physical_devices()  # the first call prints notes

__all__ = ["keras", "tf"]
