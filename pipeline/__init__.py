import components  # noqa: F401 (it pins the backend of Keras, which modules of this package import)
