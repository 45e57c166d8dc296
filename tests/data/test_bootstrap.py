"""Bootstrap samples of tasks: Poisson draws that depend on task, seed and head alone."""

import numpy as np

from agentrm_jax.data import bootstrap


def test_a_tasks_draws_are_its_own_and_the_seeds():
    a, b = (bootstrap.task_number(f"maze/{i}") for i in (1, 2))
    once = bootstrap.task_weights(a, 3, 5)
    bootstrap.task_weights.cache_clear()
    assert bootstrap.task_weights(a, 3, 5) == once
    assert len({once, bootstrap.task_weights(b, 3, 5), bootstrap.task_weights(a, 4, 5)}) == 3
    assert 0 <= a < 2**31


def test_draws_are_poisson_of_mean_one():
    drawn = np.array([bootstrap.task_weights(bootstrap.task_number(f"t/{i}"), 0, 5) for i in range(2000)])
    assert set(np.unique(drawn)) <= set(range(10))
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.1)
    np.testing.assert_allclose(drawn.var(0), 1, atol=0.15)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1, "heads draw by themselves"


def test_tokens_have_the_weights_of_their_task_and_padding_none():
    a, b = bootstrap.task_number("a"), bootstrap.task_number("b")
    found = bootstrap.head_weights(np.array([a, a, b, -1], np.int32), 7, 3)
    assert found.shape == (4, 3)
    assert found[0].tolist() == found[1].tolist() == list(bootstrap.task_weights(a, 7, 3))
    assert found[2].tolist() == list(bootstrap.task_weights(b, 7, 3))
    assert not found[3].any()
