"""TFX components, one module each. Artifact types resolve as `components.<Name>`, the name they have in ML Metadata."""

import importlib


def __getattr__(name: str):
    # Lazy, so that `components.architectures` can be read without the seconds that importing TFX takes.
    if name[0].isupper():
        artifacts = importlib.import_module("components.artifacts")
        if hasattr(artifacts, name):
            return getattr(artifacts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
