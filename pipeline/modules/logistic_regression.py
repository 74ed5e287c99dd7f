"""Linear heads that are solved instead of trained: multinomial logistic regression with an L2 penalty."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

# Weights that differ by less than this gradient change the probabilities by less than 0.001.
_TOLERANCE = 1e-5
_MAX_ITERATIONS = 2000


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
    The solver is L-BFGS (scikit-learn).

    Args:
        embeddings: Embeddings, float32 [n, d].
        labels: Indices of the breeds, int64 [n].
        breeds: Number of breeds.
        penalties: Penalties, each above 0; descending ones need the fewest iterations.
    """
    present = np.unique(labels)
    bias = np.full(breeds, -np.inf, np.float32)
    bias[present] = 0
    if len(present) == 1:
        yield from (Solution(np.zeros((embeddings.shape[1], breeds), np.float32), bias, 0) for _ in penalties)
        return
    squared_length = float(np.mean(np.sum(embeddings**2, axis=1)))
    # The optimal weights are combinations of the photos. With fewer photos than dimensions, it is faster to solve in
    # the space that the photos span, of which `basis` is an orthonormal basis.
    basis, features = None, embeddings
    if len(embeddings) < embeddings.shape[1]:
        with _one_thread():
            basis, coordinates = np.linalg.qr(embeddings.T)
        features = coordinates.T
    # For two breeds, scikit-learn penalizes the difference of their weights.
    scale = squared_length / 2 if len(present) == 2 else squared_length
    model = LogisticRegression(warm_start=True, tol=_TOLERANCE, max_iter=_MAX_ITERATIONS)
    for penalty in penalties:
        model.set_params(C=1 / (penalty * scale))
        with _one_thread():
            model.fit(features, labels)
        weights, intercepts = model.coef_.T, model.intercept_
        if len(present) == 2:
            weights, intercepts = np.hstack([-weights, weights]) / 2, np.hstack([-intercepts, intercepts]) / 2
        kernel = np.zeros((embeddings.shape[1], breeds), np.float32)
        kernel[:, present] = weights if basis is None else basis @ weights
        bias = bias.copy()
        bias[present] = intercepts
        yield Solution(kernel, bias, int(model.n_iter_[0]))


def _one_thread() -> threadpool_limits:
    """Context manager: the matrices are so small that several threads of BLAS would mostly wait for each other."""
    return threadpool_limits(1)
