"""The file by which rollout tells gateways what share of the requests the canary gets."""

import json


def traffic_text(canary_share: float) -> str:
    """Content of the file.

    Args:
        canary_share: 0 to 1.
    """
    return json.dumps({"canary_share": canary_share})


def read_canary_share(text: str) -> float:
    """The share in a file of `traffic_text`.

    Raises:
        ValueError: it is none.
    """
    document = json.loads(text)
    share = document.get("canary_share") if isinstance(document, dict) else None
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"canary_share must be a number from 0 to 1: {text!r}")
    return float(share)
