"""The traffic split file: rollout writes the canary's share of the requests, gateways read it."""

import json


def traffic_text(canary_share: float) -> str:
    """Return the content of the file.

    Args:
        canary_share: Share of the requests for the canary, 0 to 1.
    """
    return json.dumps({"canary_share": canary_share})


def read_canary_share(text: str) -> float:
    """Return the canary's share from the content of the file.

    Raises:
        ValueError: If the content is not valid.
    """
    document = json.loads(text)
    share = document.get("canary_share") if isinstance(document, dict) else None
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"canary_share must be a number from 0 to 1: {text!r}")
    return float(share)
