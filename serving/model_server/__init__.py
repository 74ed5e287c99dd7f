"""Embedded model server: TensorFlow Serving's API in Python, for the demo, tests and notebooks.

`python -m serving.model_server` accepts the flags of `tensorflow_model_server`. TensorFlow runs the graphs, so errors
about invalid inputs have the same text as TensorFlow Serving's. Other packages use this server only as a process.
"""
