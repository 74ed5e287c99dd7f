"""The result of `catbreeds drift` in the folder of the captures, which the gateway exports as metrics."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

_FILE = "drift.json"


@dataclass(frozen=True)
class DriftResult:
    """Result of the last comparison of captured photos with test photos.

    Attributes:
        version: Version that answered the captured photos.
        time: Time of the comparison, in seconds since the epoch.
        photos: Number of captured photos.
        ratios: Distance divided by the threshold, by feature; above 1, the feature has drifted. Empty if there were too
            few photos.
    """

    version: int
    time: float
    photos: int
    ratios: dict[str, float]


def write_drift_result(folder: Path, result: DriftResult) -> None:
    """Write the result to the folder of the captures; readers see the former or the new one.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = folder / f".{_FILE}-{secrets.token_hex(4)}"
    try:
        temporary.write_text(json.dumps(asdict(result)) + "\n", encoding="utf-8")
        temporary.rename(folder / _FILE)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_drift_result(folder: Path) -> DriftResult | None:
    """Read the last result in the folder of the captures; None if there is none.

    Raises:
        OSError: If it cannot be read.
        ValueError: If the file is damaged.
    """
    try:
        row = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        ratios = {str(name): float(ratio) for name, ratio in row["ratios"].items()}
        return DriftResult(int(row["version"]), float(row["time"]), int(row["photos"]), ratios)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _FILE}: damaged: {type(error).__name__}: {error}") from None
