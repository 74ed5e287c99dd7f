"""Rollout of pushed models to running servers, on one machine or in a Kubernetes cluster.

`controller` promotes versions, rolls them back and runs canaries. `plan` determines the order of configurations, and
`apply` applies them to a fleet. `fleet` defines the interface to the servers; `local_fleet` and `kubernetes_fleet`
implement it. `serving_config` is the configuration that servers load. Nothing here imports TensorFlow.
"""
