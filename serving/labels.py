"""The labels that TensorFlow Serving gives to versions of a model."""

STABLE = "stable"  # the version in service
CANARY = "canary"  # a new version that gets a share of the requests
