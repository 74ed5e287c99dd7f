"""The web page: a photo in, its breed out. It asks the gateway and nobody else; `python -m serving.page` starts it."""
