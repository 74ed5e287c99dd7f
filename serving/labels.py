"""Labels of model versions in TensorFlow Serving."""

STABLE = "stable"  # receives all requests, or all but the canary's share
CANARY = "canary"  # a new version that receives a share of the requests
