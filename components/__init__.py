"""TFX components, one module each. Artifact types resolve as `components.<Name>`, their type name in ML Metadata."""

import importlib
import os

# Keras and Keras Tuner read these variables on import, and TFX may import them first. Values that were set for another
# project would change a run.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["KERAS_NNX_ENABLED"] = "false"  # takes precedence over keras.json
for _name in (
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
    "KERASTUNER_ORACLE_IP",
    "KERASTUNER_ORACLE_PORT",
    "KERASTUNER_TUNER_ID",
    "TF_USE_LEGACY_KERAS",  # TensorFlow Transform sets the value that it needs
):
    os.environ.pop(_name, None)


def __getattr__(name: str):
    # Lazy, so that modules such as `components.candidates.architectures` can be imported without importing TFX, which
    # takes seconds.
    if name[0].isupper():
        artifacts = importlib.import_module("components.artifacts")
        if hasattr(artifacts, name):
            return getattr(artifacts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
