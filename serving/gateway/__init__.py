"""HTTP gateway: accepts photos, normalizes them, and returns the breeds that the model server predicts.

The model server receives only photos that can be decoded. Start the gateway with `python -m serving.gateway`; `--help`
lists the environment variables that configure it.
"""
