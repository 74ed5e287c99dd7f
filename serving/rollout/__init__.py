"""From "a model was pushed" to "users are served by it, and can be taken back", on a laptop and in a cluster.

`rollout` decides and keeps the order of steps; `fleet` is what it needs of the place; `laptop` and `cluster` are the
two places; `plan` is what servers shall serve. Nothing here imports TensorFlow.
"""
