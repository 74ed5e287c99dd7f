"""TensorFlow Serving's API from Python, where its image cannot run: demo, tests, notebooks.

`python -m serving.model_server` takes the flags of `tensorflow_model_server`. TensorFlow runs the graphs, so what it
says of bad input is what TensorFlow Serving would say. The rest of the project talks to the process only.
"""
