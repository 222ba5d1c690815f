"""The one place that imports TensorFlow and Keras: quietly, and with the TensorFlow backend.

Importing this module takes 6 to 7 s, so only files that need a network do it, and only when
they run.
"""

import logging
import os

from pipeline.silence import silenced_stderr

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # notes about CUDA and oneDNN are not for users


logging.getLogger(__name__).info("loading TensorFlow, which takes some seconds")
with silenced_stderr():  # until TensorFlow's log level takes effect
    import keras
    import tensorflow as tf

    tf.get_logger().setLevel(logging.ERROR)  # each fit compiles anew, and it would warn
    tf.config.list_physical_devices()  # the first look for devices prints its notes here

__all__ = ["keras", "tf"]
