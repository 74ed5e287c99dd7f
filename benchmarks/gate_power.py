"""Simulate how often the gate rejects an equally accurate candidate and passes one that is 3 points less accurate.

    python benchmarks/gate_power.py

The defaults of gate.policy and gate.margin were chosen from these tables: of the margins below, 0.04 is the smallest
with which no_harm rejects at most 20% of equal candidates at 150 test photos and at most 30% at 33. The cost: at 150
photos, it passes 57 to 71% of the candidates that are 3 points worse.

A scenario is the accuracy of the champion and the correlation between the correct predictions of candidate and
champion: models of the same backbone, trained again, agree more than models of different backbones. The first two
tables apply `meets_policy` to simulated numbers of wins and losses. The last one applies `decide`, with the default
rules except min_accuracy, to simulated predictions: the margin of the true breed over the others is normally
distributed, with a difficulty of the photo that both models share, and its probability is a logistic function of the
margin, calibrated at temperature T=1. The table shows why the test on log-likelihood informs but does not reject: it
notices worse models on fewer photos, but also equally accurate ones with another temperature.

Output, after about a minute on 2 idle cores:

    Share of runs in which the policy rejects an equally accurate candidate

                     policy no_harm                                 not_worse                        better sig. better
       acc.   corr.  photos    0.02    0.03    0.04    0.05    0.06    0.02    0.03    0.04    0.06
       0.70    0.55      33    0.42    0.42    0.27    0.27    0.27    0.97    0.96    0.94    0.89    0.58    0.99
       0.70    0.55     100    0.28    0.21    0.15    0.10    0.07    0.94    0.90    0.86    0.73    0.55    0.98
       0.70    0.55     150    0.26    0.20    0.11    0.08    0.04    0.92    0.88    0.81    0.62    0.54    0.98
       0.70    0.55     350    0.17    0.09    0.04    0.04    0.04    0.87    0.76    0.60    0.28    0.52    0.98
       0.70    0.55    1050    0.06    0.04    0.04    0.04    0.04    0.68    0.39    0.15    0.01    0.51    0.98
       0.70    0.80      33    0.38    0.38    0.17    0.17    0.17    0.99    0.96    0.95    0.88    0.62    1.00
       0.70    0.80     100    0.19    0.11    0.06    0.03    0.02    0.90    0.85    0.77    0.55    0.57    0.99
       0.70    0.80     150    0.16    0.10    0.03    0.03    0.03    0.88    0.79    0.65    0.35    0.56    0.99
       0.70    0.80     350    0.08    0.03    0.03    0.03    0.03    0.76    0.54    0.30    0.04    0.54    0.98
       0.70    0.80    1050    0.04    0.04    0.04    0.04    0.04    0.40    0.09    0.01    0.00    0.52    0.98
       0.90    0.55      33    0.37    0.37    0.17    0.17    0.17    0.99    0.96    0.96    0.88    0.63    1.00
       0.90    0.55     100    0.19    0.11    0.05    0.03    0.02    0.90    0.84    0.77    0.54    0.57    0.99
       0.90    0.55     150    0.16    0.10    0.03    0.03    0.03    0.88    0.79    0.64    0.34    0.56    0.99
       0.90    0.55     350    0.08    0.03    0.03    0.03    0.03    0.76    0.53    0.29    0.04    0.54    0.98
       0.90    0.55    1050    0.04    0.04    0.04    0.04    0.04    0.39    0.08    0.01    0.00    0.52    0.98
       0.90    0.80      33    0.29    0.29    0.07    0.07    0.07    1.00    0.99    0.99    0.93    0.71    1.00
       0.90    0.80     100    0.09    0.03    0.01    0.01    0.01    0.88    0.77    0.65    0.35    0.61    1.00
       0.90    0.80     150    0.06    0.03    0.01    0.01    0.01    0.81    0.64    0.43    0.13    0.59    0.99
       0.90    0.80     350    0.03    0.03    0.03    0.03    0.03    0.57    0.24    0.06    0.00    0.56    0.99
       0.90    0.80    1050    0.04    0.04    0.04    0.04    0.04    0.09    0.00    0.00    0.00    0.53    0.98

    Share of runs in which the policy passes a candidate that is 3 points worse

                     policy no_harm                                 not_worse                        better sig. better
       acc.   corr.  photos    0.02    0.03    0.04    0.05    0.06    0.02    0.03    0.04    0.06
       0.70    0.55      33    0.42    0.42    0.58    0.58    0.58    0.01    0.02    0.03    0.06    0.27    0.00
       0.70    0.55     100    0.46    0.55    0.64    0.72    0.79    0.01    0.03    0.04    0.10    0.21    0.00
       0.70    0.55     150    0.43    0.50    0.65    0.71    0.82    0.01    0.02    0.05    0.12    0.17    0.00
       0.70    0.55     350    0.35    0.50    0.67    0.68    0.68    0.01    0.02    0.06    0.24    0.08    0.00
       0.70    0.55    1050    0.24    0.30    0.30    0.30    0.30    0.00    0.02    0.11    0.60    0.01    0.00
       0.70    0.80      33    0.39    0.39    0.64    0.64    0.64    0.00    0.01    0.01    0.04    0.17    0.00
       0.70    0.80     100    0.43    0.57    0.71    0.80    0.84    0.01    0.02    0.04    0.14    0.11    0.00
       0.70    0.80     150    0.39    0.50    0.71    0.74    0.74    0.01    0.02    0.05    0.20    0.08    0.00
       0.70    0.80     350    0.29    0.44    0.44    0.44    0.44    0.00    0.02    0.08    0.44    0.02    0.00
       0.70    0.80    1050    0.05    0.05    0.05    0.05    0.05    0.00    0.02    0.19    0.90    0.00    0.00
       0.90    0.55      33    0.39    0.39    0.64    0.64    0.64    0.00    0.01    0.01    0.04    0.17    0.00
       0.90    0.55     100    0.43    0.58    0.71    0.80    0.84    0.01    0.02    0.04    0.14    0.10    0.00
       0.90    0.55     150    0.39    0.50    0.71    0.74    0.74    0.01    0.02    0.05    0.20    0.07    0.00
       0.90    0.55     350    0.29    0.43    0.43    0.43    0.43    0.00    0.02    0.09    0.45    0.02    0.00
       0.90    0.55    1050    0.04    0.04    0.04    0.04    0.04    0.00    0.02    0.19    0.91    0.00    0.00
       0.90    0.80      33    0.36    0.36    0.72    0.72    0.72    0.00    0.00    0.00    0.00    0.03    0.00
       0.90    0.80     100    0.42    0.63    0.80    0.82    0.82    0.00    0.01    0.04    0.16    0.02    0.00
       0.90    0.80     150    0.34    0.52    0.57    0.57    0.57    0.00    0.01    0.05    0.28    0.01    0.00
       0.90    0.80     350    0.09    0.09    0.09    0.09    0.09    0.00    0.02    0.11    0.66    0.00    0.00
       0.90    0.80    1050    0.00    0.00    0.00    0.00    0.00    0.00    0.02    0.34    0.99    0.00    0.00

    Share of runs in which the gate (policy no_harm, margin 0.04, max_slice_drop 0.1 on breeds with 20 photos) rejects,
    and share in which the log-likelihood is significantly worse (ll); 6 breeds

                              equal           worse           T=0.5             T=2
       acc.   corr.  photos rejects      ll rejects      ll rejects      ll rejects      ll
       0.70    0.55      33    0.23    0.02    0.38    0.15    0.23    0.08    0.23    0.16
       0.70    0.55     150    0.11    0.04    0.36    0.42    0.11    0.33    0.11    0.29
       0.70    0.55     350    0.06    0.05    0.35    0.66    0.06    0.64    0.06    0.48
       0.70    0.80      33    0.16    0.02    0.37    0.37    0.16    0.12    0.16    0.22
       0.70    0.80     150    0.04    0.04    0.29    0.88    0.04    0.49    0.04    0.39
       0.70    0.80     350    0.04    0.06    0.50    1.00    0.04    0.84    0.04    0.65
       0.90    0.55      33    0.14    0.02    0.34    0.25    0.14    0.03    0.14    0.34
       0.90    0.55     150    0.04    0.04    0.30    0.67    0.04    0.13    0.04    0.54
       0.90    0.55     350    0.04    0.07    0.54    0.91    0.04    0.30    0.04    0.80
       0.90    0.80      33    0.05    0.03    0.29    0.66    0.05    0.03    0.05    0.43
       0.90    0.80     150    0.01    0.04    0.42    1.00    0.01    0.22    0.01    0.72
       0.90    0.80     350    0.04    0.07    0.80    1.00    0.04    0.48    0.04    0.94
"""

import argparse
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm

from components.release.gate_policies import meets_policy
from components.release.gate_power import LOSS, disagreement
from components.release.gate_rules import Rules, decide
from components.statistical_tests import SIGNIFICANCE
from pipeline.settings import GateSettings

SCENARIOS = ((0.7, 0.55), (0.7, 0.8), (0.9, 0.55), (0.9, 0.8))  # accuracy of the champion, correlation
POLICIES = (
    *(("no_harm", margin) for margin in (0.02, 0.03, 0.04, 0.05, 0.06)),
    *(("not_worse", margin) for margin in (0.02, 0.03, 0.04, 0.06)),
    ("better", 0.0),
    ("significantly_better", 0.0),
)


class Case(NamedTuple):
    """A candidate.

    Attributes:
        heading: Heading of its columns.
        loss: Accuracy of the champion minus that of the candidate.
        temperature: Temperature of its probabilities; the champion's is 1. Below 1 it is overconfident.
    """

    heading: str
    loss: float = 0.0
    temperature: float = 1.0


CASES = (
    Case("equal"),
    Case("worse", loss=LOSS),
    Case("T=0.5", temperature=0.5),
    Case("T=2", temperature=2.0),
)
_WIDTH = 7  # of a column


def rejected(accuracy: float, correlation: float, photos: int, loss: float, runs: int, seed: int) -> list[float]:
    """Share of simulated runs in which each of POLICIES rejects the candidate."""
    discordant = max(disagreement(accuracy, correlation), loss)
    lose, win = (discordant + loss) / 2, (discordant - loss) / 2
    wins, losses, _ = np.random.default_rng(seed).multinomial(photos, [win, lose, 1 - win - lose], size=runs).T
    return [1 - float(np.mean(meets_policy(*policy, wins, losses, photos))) for policy in POLICIES]


def whole_gate(
    accuracy: float, correlation: float, photos: int, case: Case, breeds: int, runs: int, seed: int
) -> tuple[float, float]:
    """Share of simulated runs in which the gate rejects the candidate, and in which its log-likelihood is worse."""
    rules = Rules(**GateSettings(min_accuracy=0).model_dump())
    names = [f"breed {number:02}" for number in range(breeds)]
    champion_info = {"version": 1, "unreadable": None, "is_candidate": False, "breeds": names, "learned": []}
    shared_variance = _shared_variance(accuracy, correlation)
    rng = np.random.default_rng(seed)
    rejections = warnings = 0
    for _ in range(runs):
        of_breed = rng.integers(breeds, size=photos)
        difficulty = math.sqrt(shared_variance) * rng.standard_normal(photos)
        champion, candidate = (
            _outcomes(
                names, of_breed, difficulty + math.sqrt(1 - shared_variance) * rng.standard_normal(photos), *model
            )
            for model in ((accuracy, 1.0), (accuracy - case.loss, case.temperature))
        )
        decision = decide(rules, candidate, champion, names, champion_info, dict.fromkeys(names, 1))
        rejections += decision.outcome == "refused"
        warnings += decision.comparison["log_likelihood_worse_p"] < SIGNIFICANCE
    return rejections / runs, warnings / runs


def _shared_variance(accuracy: float, correlation: float) -> float:
    """Variance of the difficulty, of 1 in total, with which the models' correct predictions have the correlation."""
    threshold = norm.ppf(accuracy)
    both = accuracy**2 + correlation * accuracy * (1 - accuracy)
    return brentq(
        lambda shared: multivariate_normal.cdf([threshold] * 2, cov=[[1, shared], [shared, 1]]) - both, 0, 1 - 1e-6
    )


def _outcomes(
    names: list[str], of_breed: np.ndarray, noise: np.ndarray, accuracy: float, temperature: float
) -> list[dict]:
    """Outcomes as the Evaluator writes them; the mean of the margins gives the accuracy."""
    mean = norm.ppf(accuracy)
    margins = mean + noise
    probabilities = 1 / (1 + np.exp(-2 * mean * margins / temperature))
    return [
        {"content_hash": str(photo), "breed": names[breed], "correct": bool(margin > 0), "probability": probability}
        for photo, (breed, margin, probability) in enumerate(zip(of_breed, margins, probabilities, strict=True))
    ]


def _policy_table(numbers: list[int], loss: float, runs: int, seed: int) -> str:
    event = (
        f"passes a candidate that is {100 * loss:g} points worse" if loss else "rejects an equally accurate candidate"
    )
    lines = [
        f"Share of runs in which the policy {event}",
        "",
        _line(["", "", "policy"]) + _policy_headings(),
        _line(["acc.", "corr.", "photos", *(f"{margin:.2f}" if margin else "" for _, margin in POLICIES)]),
    ]
    for accuracy, correlation in SCENARIOS:
        for photos in numbers:
            shares = rejected(accuracy, correlation, photos, loss, runs, seed)
            shown = [1 - share for share in shares] if loss else shares
            lines.append(_row(accuracy, correlation, photos, shown))
    return "\n".join([*lines, ""])


def _policy_headings() -> str:
    """Name of each policy above its first column."""
    groups = itertools.groupby(policy.replace("significantly_better", "sig. better") for policy, _ in POLICIES)
    return "".join(f" {policy:>{_WIDTH}}".ljust(len(list(columns)) * (_WIDTH + 1)) for policy, columns in groups)


def _gate_table(numbers: list[int], breeds: int, runs: int, seed: int) -> str:
    gate = GateSettings()
    lines = [
        f"Share of runs in which the gate (policy {gate.policy}, margin {gate.margin:g}, max_slice_drop "
        f"{gate.max_slice_drop:g} on breeds with {gate.min_slice} photos) rejects,",
        f"and share in which the log-likelihood is significantly worse (ll); {breeds} breeds",
        "",
        _line(["", "", "", *(heading for case in CASES for heading in (case.heading, ""))]),
        _line(["acc.", "corr.", "photos", *(("rejects", "ll") * len(CASES))]),
    ]
    for accuracy, correlation in SCENARIOS:
        for photos in numbers:
            shares = [whole_gate(accuracy, correlation, photos, case, breeds, runs, seed) for case in CASES]
            lines.append(_row(accuracy, correlation, photos, [share for pair in shares for share in pair]))
    return "\n".join(lines)


def _row(accuracy: float, correlation: float, photos: int, shares: list[float]) -> str:
    return _line([f"{accuracy:.2f}", f"{correlation:.2f}", f"{photos}", *(f"{share:.2f}" for share in shares)])


def _line(cells: list[str]) -> str:
    return " ".join(f"{cell:>{_WIDTH}}" for cell in cells).rstrip()


def main() -> None:
    """Simulate and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[33, 100, 150, 350, 1050], help="numbers of photos")
    parser.add_argument("--runs", type=int, default=20_000, help="simulated runs per row of the first two tables")
    parser.add_argument("--gate-photos", type=int, nargs="+", default=[33, 150, 350], help="photos of the last table")
    parser.add_argument("--gate-runs", type=int, default=500, help="simulated runs per row of the last table")
    parser.add_argument("--breeds", type=int, default=6, help="number of equally frequent breeds in the last table")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation")
    arguments = parser.parse_args()
    for loss in (0.0, LOSS):
        print(_policy_table(arguments.photos, loss, arguments.runs, arguments.seed))
    print(_gate_table(arguments.gate_photos, arguments.breeds, arguments.gate_runs, arguments.seed))


if __name__ == "__main__":
    main()
