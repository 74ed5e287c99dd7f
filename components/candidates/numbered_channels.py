"""Numbered input channels of components that read all candidates: `model_0`, `model_1` and so on.

A component class declares its channels before the candidates are known. A parameter of the component lists their names.
"""

from collections.abc import Iterable, Mapping, Sequence

from tfx.types import Artifact, Channel
from tfx.types.component_spec import ChannelParameter

from components.candidates.architectures import MAX_CANDIDATES


def declare_channels(types: Mapping[str, type[Artifact]]) -> dict[str, ChannelParameter]:
    """Return the optional channels `<key>_0`, `<key>_1` ... for each key, with the type of its artifacts."""
    return {
        f"{key}_{number}": ChannelParameter(type=artifact, optional=True)
        for number in range(MAX_CANDIDATES)
        for key, artifact in types.items()
    }


def number_channels(candidates: Iterable[Mapping[str, Channel]]) -> dict[str, Channel]:
    """Return the channels of all candidates by their declared names.

    Args:
        candidates: Channels of each candidate by key.

    Raises:
        ValueError: If there are more than MAX_CANDIDATES, because TFX ignores channels that are not declared.
    """
    candidates = list(candidates)
    if len(candidates) > MAX_CANDIDATES:
        raise ValueError(f"{len(candidates)} candidates, but at most {MAX_CANDIDATES} are possible")
    return {
        f"{key}_{number}": channel for number, channels in enumerate(candidates) for key, channel in channels.items()
    }


def numbered_artifacts(inputs: Mapping[str, Sequence[Artifact]], key: str) -> list[Artifact]:
    """Return the artifacts of the channels `<key>_0`, `<key>_1` ... that are connected, in this order.

    Args:
        inputs: Artifacts by channel.
        key: Key of the channels.
    """
    channels = (inputs.get(f"{key}_{number}") for number in range(MAX_CANDIDATES))
    return [artifacts[0] for artifacts in channels if artifacts]
