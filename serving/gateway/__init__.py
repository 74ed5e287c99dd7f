"""The gateway: photos in over HTTP, breeds out; the model server behind it sees only photos that decode.

`python -m serving.gateway`; `--help` lists the environment variables that configure it.
"""
