"""Linear heads that are solved instead of trained: multinomial logistic regression with an L2 penalty."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

# Largest gradient per photo at which the solver ends. Probabilities then differ by less than 0.001 from the optimum.
_TOLERANCE = 1e-7
_MAX_ITERATIONS = 2000
# Ridge that makes the Cholesky decomposition of dependent photos possible, relative to their mean squared length.
_RIDGE = 1e-9
_MIN_CURVATURE = 1e-3


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


def solve(embeddings: np.ndarray, labels: np.ndarray, breeds: int, penalties: Iterable[float]) -> Iterator[Solution]:
    """Yield the head for each penalty; each solution is the start for the next one.

    The head minimizes the sum of the cross-entropies of the photos plus `penalty / 2 * |W|^2`, where W are the weights
    for embeddings that are scaled to a mean squared length of 1. So the same penalties suit embeddings of any length.

    The solver is SciPy's L-BFGS, preconditioned with an approximation of the Hessian: the same curvature for all photos
    and breeds, as in Böhning's bound (1992). scikit-learn's LogisticRegression has no preconditioner and needs many
    more iterations. Gain: "preconditioner" of `benchmarks/optimizations.py`.

    Args:
        embeddings: Embeddings, float32 [n, d].
        labels: Indices of the breeds, int64 [n].
        breeds: Number of breeds.
        penalties: Penalties, each above 0; descending ones need the fewest iterations.

    Raises:
        ArithmeticError: If the solver does not converge.
    """
    present, targets = np.unique(labels, return_inverse=True)
    bias = np.full(breeds, -np.inf, np.float32)
    bias[present] = 0
    if len(present) == 1:
        yield from (Solution(np.zeros((embeddings.shape[1], breeds), np.float32), bias, 0) for _ in penalties)
        return
    squared_length = max(float(np.mean(np.sum(embeddings**2, axis=1))), np.finfo(np.float32).tiny)
    with _one_thread():
        features, to_kernel = _coordinates(embeddings, squared_length)
        gram = features.T @ features
    weights, intercepts = np.zeros((features.shape[1], len(present))), np.zeros(len(present))
    curvature = (1 - 1 / len(present)) / len(present)  # of equal probabilities
    for penalty in penalties:
        with _one_thread():
            hessian = curvature * gram
            hessian[np.diag_indices_from(hessian)] += penalty * squared_length
            problem = _Problem(features, targets, penalty * squared_length, cholesky(hessian, lower=True), curvature)
            weights, intercepts, iterations = problem.minimize(weights, intercepts)
            probabilities = softmax(features @ weights + intercepts, axis=1)
            curvature = max(float(np.mean(probabilities * (1 - probabilities))), _MIN_CURVATURE)
            kernel = np.zeros((embeddings.shape[1], breeds), np.float32)
            kernel[:, present] = to_kernel(weights)
        bias = bias.copy()
        bias[present] = intercepts
        yield Solution(kernel, bias, iterations)


class _Problem:
    """The logistic regression for one penalty, in variables in which its Hessian is close to the identity.

    Args:
        features: float64 [n, m].
        targets: Indices of the breeds, int64 [n].
        strength: Factor of `|W|^2 / 2` in the objective.
        factor: Lower Cholesky factor of the approximate Hessian of a column of W, float64 [m, m].
        curvature: Approximate curvature of the cross-entropy of a photo.
    """

    def __init__(
        self, features: np.ndarray, targets: np.ndarray, strength: float, factor: np.ndarray, curvature: float
    ):
        self._features, self._targets, self._strength, self._factor = features, targets, strength, factor
        self._intercept_scale = np.sqrt(len(features) * curvature)

    def minimize(self, weights: np.ndarray, intercepts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return weights float64 [m, breeds], intercepts float64 [breeds] and the number of iterations from a start."""
        start = np.vstack([self._factor.T @ weights, intercepts * self._intercept_scale])
        result = minimize(
            self._objective,
            start.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"gtol": _TOLERANCE, "ftol": 0, "maxiter": _MAX_ITERATIONS},
        )
        gradient = np.abs(result.jac).max()
        # Close to the optimum, rounding errors can end the search for a step before the tolerance is reached.
        if not gradient < 10 * _TOLERANCE:
            raise ArithmeticError(f"the logistic regression did not converge (gradient {gradient:g}): {result.message}")
        return *self._parameters(result.x), int(result.nit)

    def _parameters(self, variables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = variables.reshape(len(self._factor) + 1, -1)
        return _solve(self._factor, values[:-1], "T"), values[-1] / self._intercept_scale

    def _objective(self, variables: np.ndarray) -> tuple[float, np.ndarray]:
        """Objective per photo, and its gradient."""
        weights, intercepts = self._parameters(variables)
        log_probabilities = log_softmax(self._features @ weights + intercepts, axis=1)
        rows, photos = np.arange(len(self._features)), len(self._features)
        value = -log_probabilities[rows, self._targets].sum() + self._strength / 2 * np.sum(weights**2)
        errors = np.exp(log_probabilities)
        errors[rows, self._targets] -= 1
        gradient = [
            _solve(self._factor, self._features.T @ errors + self._strength * weights, "N"),
            errors.sum(axis=0) / self._intercept_scale,
        ]
        return value / photos, np.vstack(gradient).ravel() / photos


def _coordinates(
    embeddings: np.ndarray, squared_length: float
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return coordinates of the photos, float64 [n, min(n, d)], and the function from their weights to the kernel.

    The optimal weights are combinations of the photos. So if there are fewer photos than dimensions, it is faster to
    solve in the space that the photos span. Their coordinates are the Cholesky factor of their scalar products.
    """
    values = embeddings.astype(np.float64)
    photos, dimensions = values.shape
    if photos >= dimensions:
        return values, lambda weights: weights
    products = values @ values.T
    products[np.diag_indices(photos)] += _RIDGE * squared_length
    factor = cholesky(products, lower=True)
    return factor, lambda weights: values.T @ _solve(factor, weights, "T")


def _solve(factor: np.ndarray, right: np.ndarray, transposed: str) -> np.ndarray:
    return solve_triangular(factor, right, lower=True, trans=transposed, check_finite=False)


def _one_thread() -> threadpool_limits:
    """Context manager: components run in parallel, and threads of BLAS would mostly wait for each other."""
    return threadpool_limits(1)
