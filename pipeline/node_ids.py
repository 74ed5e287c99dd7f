"""IDs of components."""


def branch_node_id(component: str, candidate: str) -> str:
    """ID of a component in the branch of a candidate. Kubeflow Pipelines accepts no underscores in IDs."""
    return f"{component}-{candidate.replace('_', '-')}"
