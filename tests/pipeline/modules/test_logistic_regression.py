"""Logistic regressions are solved exactly, for any number of photos, dimensions and breeds."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from pipeline.modules import logistic_regression
from pipeline.modules.logistic_regression import Problem, Solution


def photos(count: int, size: int, breeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [count, size] with overlapping clusters, and labels [count]."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % breeds
    return (random.normal(size=(breeds, size))[labels] + 2 * random.normal(size=(count, size))).astype(
        np.float32
    ), labels


def solve(embeddings: np.ndarray, labels: np.ndarray, breeds: int, penalties: list[float]) -> list[Solution]:
    """Solve the problems of all photos with each penalty."""
    problems = [Problem(np.ones(len(labels), bool), penalty) for penalty in penalties]
    return logistic_regression.solve(embeddings, labels, breeds, problems)


def minimum(embeddings: np.ndarray, labels: np.ndarray, breeds: int, penalty: float) -> np.ndarray:
    """Probabilities that minimize the documented objective, found by a general optimizer."""
    length = np.mean(np.sum(embeddings**2, axis=1))

    def logits(parameters):
        kernel, bias = np.split(parameters.reshape(-1, breeds), [embeddings.shape[1]])
        return embeddings @ kernel + bias

    def objective(parameters):
        losses = -log_softmax(logits(parameters), axis=1)[np.arange(len(labels)), labels]
        kernel = parameters[: embeddings.shape[1] * breeds]
        return losses.sum() + penalty / 2 * length * np.sum(kernel**2)

    start = np.zeros((embeddings.shape[1] + 1) * breeds)
    return np.exp(log_softmax(logits(minimize(objective, start, options={"gtol": 1e-4}).x), axis=1))


@pytest.mark.parametrize(("count", "size", "breeds"), [(40, 5, 3), (8, 12, 3), (40, 5, 2)])
def test_solution_minimizes_the_loss_with_the_penalty(count, size, breeds):
    embeddings, labels = photos(count, size, breeds)
    penalties = [1.0, 0.1]
    for penalty, solution in zip(penalties, solve(embeddings, labels, breeds, penalties), strict=True):
        expected = minimum(embeddings.astype(np.float64), labels, breeds, penalty)
        np.testing.assert_allclose(solution.probabilities(embeddings), expected, atol=1e-3)
        assert solution.iterations > 0


@pytest.mark.parametrize("size", [6, 40])
def test_solution_equals_that_of_scikit_learn_for_dependent_photos_and_small_penalties(size):
    embeddings, labels = photos(24, size, 3)
    embeddings[12:] = embeddings[:12]
    penalties = [0.03, 1e-4]
    length = np.mean(np.sum(embeddings**2, axis=1))
    for penalty, solution in zip(penalties, solve(embeddings, labels, 3, penalties), strict=True):
        reference = LogisticRegression(C=1 / (penalty * length), tol=1e-8, max_iter=10_000).fit(embeddings, labels)
        expected = reference.predict_proba(embeddings)
        np.testing.assert_allclose(solution.probabilities(embeddings), expected, atol=1e-3)


def test_penalty_does_not_depend_on_the_length_of_the_embeddings():
    embeddings, labels = photos(40, 5, 3)
    (short,), (long,) = (solve(scale * embeddings, labels, 3, [0.1]) for scale in (1, 20))
    np.testing.assert_allclose(short.probabilities(embeddings), long.probabilities(20 * embeddings), atol=1e-3)


@pytest.mark.parametrize("present", [[0, 2, 3], [1, 3], [2]])
def test_breed_without_photos_has_probability_0(present):
    embeddings, labels = photos(30, 4, len(present))
    (solution,) = solve(embeddings, np.array(present)[labels], 4, [0.1])
    probabilities = solution.probabilities(embeddings)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert set(np.flatnonzero(probabilities.sum(axis=0))) == set(present)


def test_problems_have_the_solutions_of_their_own_photos():
    embeddings, labels = photos(60, 30, 3)
    parts = [np.arange(60) < 40, np.arange(60) % 2 == 0, labels != 1]
    problems = [Problem(part, penalty) for part, penalty in zip(parts, [0.1, 1.0, 0.01], strict=True)]
    together = logistic_regression.solve(embeddings, labels, 3, problems)
    for (part, penalty), solution in zip(problems, together, strict=True):
        (alone,) = solve(embeddings[part], labels[part], 3, [penalty])
        np.testing.assert_allclose(solution.probabilities(embeddings), alone.probabilities(embeddings), atol=1e-3)
