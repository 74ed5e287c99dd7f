import components  # noqa: F401 (selects the Keras backend before modules of this package import Keras)
