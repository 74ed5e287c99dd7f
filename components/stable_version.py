"""The stable version of the registry as an input of components: its identity is a parameter, part of the cache key."""

from components.digests import json_digest
from serving.registry import Registry


def stable_identity(registry: Registry) -> str:
    """Number of the stable version and a digest of its files' sizes and times; "" without a stable version."""
    version = registry.stable()
    if version is None:
        return ""
    files = sorted(path for path in registry.path(version).rglob("*") if path.is_file())
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{version}@{json_digest(stats)}"


def stable_version(registry: Registry, identity: str | None) -> int | None:
    """Return the stable version in a result of `stable_identity`; for None, the current one of the registry."""
    if identity is None:
        return registry.stable()
    return int(identity.partition("@")[0]) if identity else None
