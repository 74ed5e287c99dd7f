"""Linear heads that are solved instead of trained: multinomial logistic regression with an L2 penalty."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

# Largest gradient per photo at which the solver ends. Probabilities then differ by less than 0.001 from the optimum.
_TOLERANCE = 5e-7
_MAX_ITERATIONS = 2000
# Number of directions, those of the largest variance, in which the preconditioner uses the variance of the embeddings.
_RANK = 200
# Typical p(1 - p) of a probability of a solved head.
_CURVATURE = 0.02


class Problem(NamedTuple):
    """The photos that a head is fitted to, and its penalty.

    Attributes:
        photos: Whether the head is fitted to a photo, bool [n]; true for one or more.
        penalty: See `solve`; above 0.
    """

    photos: np.ndarray
    penalty: float


class Solution(NamedTuple):
    """A linear head.

    Attributes:
        kernel: Weights, float32 [d, breeds].
        bias: Biases, float32 [breeds]; -inf for a breed without photos.
        iterations: Number of iterations of the solver.
    """

    kernel: np.ndarray
    bias: np.ndarray
    iterations: int

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Breed probabilities, float32 [n, breeds], of embeddings float32 [n, d]."""
        return softmax(embeddings @ self.kernel + self.bias, axis=1)


def solve(embeddings: np.ndarray, labels: np.ndarray, breeds: int, problems: Sequence[Problem]) -> list[Solution]:
    """Solve several logistic regressions on the same embeddings, in one minimization.

    A head minimizes the sum of the cross-entropies of its photos plus `penalty / 2 * |W|^2`, where W are the weights
    for embeddings that are scaled to a mean squared length of 1. So the same penalties suit embeddings of any length.

    The solver is SciPy's L-BFGS. It minimizes the sum of all objectives, because reading the embeddings from memory
    takes most of the time. The preconditioner is an approximation of the Hessian: it has the same curvature for all
    photos and breeds, as in Böhning's bound (1992), and the variance of the embeddings in the directions where it is
    largest.
    scikit-learn's LogisticRegression has no preconditioner and needs many more iterations. Gain: "solver" of
    `benchmarks/optimizations.py`.

    Args:
        embeddings: Embeddings, float32 [n, d].
        labels: Indices of the breeds, int64 [n].
        breeds: Number of breeds.
        problems: Problems to solve.

    Raises:
        ArithmeticError: If the solver does not converge.
    """
    # One thread: components run in parallel, and threads of BLAS would mostly wait for each other.
    with threadpool_limits(1):
        objective = _Objective(embeddings, labels, breeds, problems)
        result = minimize(
            objective,
            objective.start,
            jac=True,
            method="L-BFGS-B",
            options={"gtol": _TOLERANCE, "ftol": 0, "maxiter": _MAX_ITERATIONS},
        )
        gradient = np.abs(result.jac).max()
        # Close to the optimum, rounding errors can end the search for a step before the tolerance is reached.
        if not gradient < 10 * _TOLERANCE:
            raise ArithmeticError(f"the logistic regression did not converge (gradient {gradient:g}): {result.message}")
        kernels, biases = (np.split(values, len(problems)) for values in objective.parameters(result.x))
    return [
        Solution(kernel.T.astype(np.float32), bias.astype(np.float32), int(result.nit))
        for kernel, bias in zip(kernels, biases, strict=True)
    ]


class _Objective:
    """Sum of the objectives per photo, and its gradient, in variables in which the Hessian is close to the identity.

    The rows of all matrices are the breeds of the first problem, then those of the second one, and so on. With a column
    for each, the products with the embeddings would take longer; gain: "few rows" of `benchmarks/optimizations.py`.

    Attributes:
        start: Variables of heads without weights.
    """

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray, breeds: int, problems: Sequence[Problem]):
        self._features, self._labels = embeddings.astype(np.float64), labels
        self._columns, self._shape = np.arange(len(labels)), (len(problems), breeds, len(labels))
        self._fitted = np.stack([problem.photos for problem in problems])
        photos = self._fitted.sum(axis=1)
        squared_lengths = np.einsum("ij,ij->i", self._features, self._features)  # makes no copy
        strengths = np.array([problem.penalty for problem in problems]) * np.maximum(
            self._fitted @ squared_lengths / photos, np.finfo(np.float32).tiny
        )
        self._photos = np.repeat(photos, breeds)[:, np.newaxis]
        self._strengths = np.repeat(strengths, breeds)[:, np.newaxis]
        counts = np.stack([np.bincount(labels[problem.photos], minlength=breeds) for problem in problems])
        self._no_photos = np.where(counts.ravel() == 0, -np.inf, 0)
        self.start = np.zeros(self._photos.size * (self._features.shape[1] + 1))

        _, singular_values, directions = randomized_svd(
            embeddings, min(_RANK, *embeddings.shape), n_iter=2, random_state=0
        )
        self._directions = directions.astype(np.float64)
        variances = singular_values.astype(np.float64) ** 2 / len(labels)
        self._scale = 1 / np.sqrt(_CURVATURE * self._photos * variances[-1] + self._strengths)
        self._scale_change = 1 / np.sqrt(_CURVATURE * self._photos * variances + self._strengths) - self._scale
        self._bias_scale = 1 / np.sqrt(_CURVATURE * self._photos[:, 0])

    def __call__(self, variables: np.ndarray) -> tuple[float, np.ndarray]:
        kernels, biases = self.parameters(variables)
        logits = kernels @ self._features.T + biases[:, np.newaxis]
        log_probabilities = log_softmax(logits.reshape(self._shape), axis=1)
        losses = np.where(self._fitted, -log_probabilities[:, self._labels, self._columns], 0)
        value = losses.sum(axis=1) @ (1 / self._photos[:: self._shape[1], 0])
        value += np.sum(kernels**2, axis=1) @ (self._strengths / self._photos / 2)[:, 0]
        errors = np.exp(log_probabilities)
        errors[:, self._labels, self._columns] -= 1
        errors = (errors * self._fitted[:, np.newaxis]).reshape(logits.shape) / self._photos
        gradient = errors @ self._features + self._strengths / self._photos * kernels
        bias_gradient = errors.sum(axis=1) * self._bias_scale
        return value, np.column_stack([self._precondition(gradient), bias_gradient]).ravel()

    def parameters(self, variables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernels, float64 [problems * breeds, d], and the biases, float64 [problems * breeds]."""
        values = variables.reshape(self._photos.size, -1)
        return self._precondition(values[:, :-1]), values[:, -1] * self._bias_scale + self._no_photos

    def _precondition(self, values: np.ndarray) -> np.ndarray:
        """Multiply by the inverse square root of the approximate Hessian."""
        return (self._scale_change * (values @ self._directions.T)) @ self._directions + self._scale * values
