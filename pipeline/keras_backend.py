"""Import Keras with the TensorFlow backend, and both without their notes on stderr.

No other module imports them. The import takes 6 to 7 s: only functions that need a network do it.
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

    tf.get_logger().setLevel(logging.ERROR)  # it warns that each fit compiles functions again
    tf.config.list_physical_devices()  # the first call prints notes

__all__ = ["keras", "tf"]
