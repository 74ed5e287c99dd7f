"""Web page that shows the breed of a cat in a photo, with the gateway as its only backend.

Start it with `python -m serving.page`.
"""
