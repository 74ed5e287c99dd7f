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
        kernels, biases = (np.split(values, len(problems), axis=-1) for values in objective.parameters(result.x))
    return [
        Solution(kernel.astype(np.float32), bias.astype(np.float32), int(result.nit))
        for kernel, bias in zip(kernels, biases, strict=True)
    ]


class _Objective:
    """Sum of the objectives per photo, and its gradient, in variables in which the Hessian is close to the identity.

    The columns of all matrices are the breeds of the first problem, then those of the second one, and so on.

    Attributes:
        start: Variables of heads without weights.
    """

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray, breeds: int, problems: Sequence[Problem]):
        self._features, self._labels = embeddings.astype(np.float64), labels
        self._rows, self._shape = np.arange(len(labels)), (len(labels), len(problems), breeds)
        self._fitted = np.stack([problem.photos for problem in problems], axis=1)
        photos = self._fitted.sum(axis=0)
        squared_lengths = np.einsum("ij,ij->i", self._features, self._features)  # makes no copy
        strengths = np.array([problem.penalty for problem in problems]) * np.maximum(
            squared_lengths @ self._fitted / photos, np.finfo(np.float32).tiny
        )
        self._photos, self._strengths = np.repeat(photos, breeds), np.repeat(strengths, breeds)
        counts = np.stack([np.bincount(labels[problem.photos], minlength=breeds) for problem in problems])
        self._no_photos = np.where(counts.ravel() == 0, -np.inf, 0)
        self.start = np.zeros((self._features.shape[1] + 1) * self._photos.size)

        _, singular_values, directions = randomized_svd(
            embeddings, min(_RANK, *embeddings.shape), n_iter=2, random_state=0
        )
        self._directions = directions.T.astype(np.float64)
        variances = singular_values[:, np.newaxis].astype(np.float64) ** 2 / len(labels)
        self._scale = 1 / np.sqrt(_CURVATURE * self._photos * variances[-1] + self._strengths)
        self._scale_change = 1 / np.sqrt(_CURVATURE * self._photos * variances + self._strengths) - self._scale
        self._bias_scale = 1 / np.sqrt(_CURVATURE * self._photos)

    def __call__(self, variables: np.ndarray) -> tuple[float, np.ndarray]:
        kernels, biases = self.parameters(variables)
        logits = self._features @ kernels + biases
        log_probabilities = log_softmax(logits.reshape(self._shape), axis=2)
        losses = np.where(self._fitted, -log_probabilities[self._rows, :, self._labels], 0)
        value = losses.sum(axis=0) @ (1 / self._photos[:: self._shape[2]])
        value += np.sum(kernels**2, axis=0) @ (self._strengths / self._photos / 2)
        errors = np.exp(log_probabilities)
        errors[self._rows, :, self._labels] -= 1
        errors = (errors * self._fitted[:, :, np.newaxis]).reshape(logits.shape) / self._photos
        gradient = self._features.T @ errors + self._strengths / self._photos * kernels
        return value, np.vstack([self._precondition(gradient), errors.sum(axis=0) * self._bias_scale]).ravel()

    def parameters(self, variables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernels, float64 [d, problems * breeds], and the biases, float64 [problems * breeds]."""
        values = variables.reshape(-1, self._photos.size)
        return self._precondition(values[:-1]), values[-1] * self._bias_scale + self._no_photos

    def _precondition(self, values: np.ndarray) -> np.ndarray:
        """Multiply by the inverse square root of the approximate Hessian."""
        return self._directions @ (self._scale_change * (self._directions.T @ values)) + self._scale * values
