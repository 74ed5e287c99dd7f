"""Keras with the settings that this project was measured with; they override the keras.json of the machine."""

import keras

keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
keras.config.set_image_data_format("channels_last")

__all__ = ["keras"]
