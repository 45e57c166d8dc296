"""Losses as pure functions of arrays. Entries of weight 0 contribute nothing, and a loss without any weight is 0.

Losses that compare states know what belongs together from arrays of indices into a row: `group` holds the same number at states
that are compared with each other (siblings of a tree, the two sides of a preference), `before` where the state lies that a state
follows; -1 for none.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

_EQUAL = 1e-6  # targets that differ by no more are equal: sums of returns are rounded


def weighted_mean(x: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The mean sum(w * x) / sum(w); 0 if all weights are 0. Where a weight is 0, x may be anything, NaN included."""
    x = jnp.where(weights > 0, x, 0.0)
    total = jnp.sum(weights)
    return jnp.sum(x * weights) / jnp.where(total > 0, total, 1.0)


def imitation(logprobs: Float[Array, "b t"], weights: Float[Array, "b t"]) -> Float[Array, ""]:
    """Weighted mean negative log-likelihood in nats a token (paper eq. 1, per token)."""
    return weighted_mean(-logprobs, weights)


def regression(
    values: Float[Array, "*shape"], targets: Float[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Weighted mean squared error of predicted values (paper eq. 2)."""
    values, targets = _masked(values, weights), _masked(targets, weights)
    return weighted_mean(jnp.square(values - targets), weights)


def cross_entropy(
    values: Float[Array, "*shape"], targets: Float[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Weighted mean binary cross-entropy of sigmoid(values) against soft targets in [0, 1]; stable for any value."""
    values, targets = _masked(values, weights), _masked(targets, weights)
    losses = -targets * jax.nn.log_sigmoid(values) - (1 - targets) * jax.nn.log_sigmoid(-values)
    return weighted_mean(losses, weights)


def value_metrics(
    predicted: Float[Array, "b t"], targets: Float[Array, "b t"], weights: Float[Array, "b t"]
) -> dict[str, Num[Array, ""]]:
    """Error of predicted outcomes, beside the error of always predicting the batch's mean target."""
    mean = weighted_mean(targets, weights)
    return {
        "squared_error": regression(predicted, targets, weights),
        "target_variance": regression(jnp.broadcast_to(mean, targets.shape), targets, weights),
        "states": jnp.sum(weights > 0, dtype=jnp.int32),
    }


# --- Comparisons within groups ---------------------------------------------------------------------------------------


def pairwise(
    values: Float[Array, "b t"],
    targets: Float[Array, "b t"],
    weights: Float[Array, "b t"],
    group: Int[Array, "b t"],
    *,
    margin: float = 0.0,
    center: float = 0.0,
) -> Float[Array, ""]:
    """Bradley-Terry: mean of -log sigmoid(v_i - v_j - margin) over the pairs of a group in which i has the higher target.

    A pair weighs the product of its states' weights. `center` adds that many times the mean of (v_i + v_j)^2, which keeps values
    around 0: the first term alone does not change if a number is added to all of them.
    """
    values = _masked(values, weights)
    above, below = values[:, :, None], values[:, None, :]
    losses = -jax.nn.log_sigmoid(above - below - margin)
    if center:
        losses += center * jnp.square(above + below)
    return weighted_mean(losses, pair_weights(targets, weights, group))


def pair_weights(
    targets: Float[Array, "b t"], weights: Float[Array, "b t"], group: Int[Array, "b t"]
) -> Float[Array, "b t t"]:
    """Weight of every pair (i, j) of a row: that of states of one group of which i has the higher target, else 0."""
    targets = _masked(targets, weights)
    together = (group[:, :, None] == group[:, None, :]) & (group >= 0)[:, :, None]
    ordered = targets[:, :, None] > targets[:, None, :] + _EQUAL
    return jnp.where(together & ordered, weights[:, :, None] * weights[:, None, :], 0.0)


def listwise(
    values: Float[Array, "b t"],
    targets: Float[Array, "b t"],
    weights: Float[Array, "b t"],
    group: Int[Array, "b t"],
) -> Float[Array, ""]:
    """Plackett-Luce, top one: mean over groups of -log softmax(v) at the state of the highest target (averaged over ties).

    A group weighs the mean of its states' weights; one in which all targets are equal says nothing. For groups of two this is
    `pairwise`.
    """
    logprob, best = _top_one(values, targets, weights, group)
    return weighted_mean(-logprob, best)


def top_one_weights(
    targets: Float[Array, "b t"], weights: Float[Array, "b t"], group: Int[Array, "b t"]
) -> Float[Array, "b t"]:
    """What the states weigh that `listwise` raises: the weight of their group, shared by ties."""
    return _top_one(jnp.zeros_like(targets), targets, weights, group)[1]


def _top_one(
    values: jax.Array, targets: jax.Array, weights: jax.Array, group: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log softmax of values within each group, and the weight of being on top, both [b, t]."""
    member = (group >= 0) & (weights > 0)
    t = values.shape[1]
    place = jnp.where(member, group, t)  # the last place collects what belongs nowhere

    def over(segment, x: jax.Array) -> jax.Array:
        """A value of each state's group, at the state."""
        found = jax.vmap(functools.partial(segment, num_segments=t + 1))(x, place)
        return jnp.take_along_axis(found, place, axis=1)

    total, highest = functools.partial(over, jax.ops.segment_sum), functools.partial(over, jax.ops.segment_max)
    values, targets = jnp.where(member, values, 0.0), jnp.where(member, targets, 0.0)
    shifted = values - jax.lax.stop_gradient(highest(values))
    logprob = shifted - jnp.log(total(jnp.exp(shifted)))
    is_best = member & (targets >= highest(targets) - _EQUAL)
    count, best = total(member.astype(jnp.float32)), total(is_best.astype(jnp.float32))
    says = is_best & (best < count)
    weight = total(jnp.where(member, weights, 0.0)) / jnp.maximum(count, 1.0)
    return logprob, jnp.where(says, weight / jnp.maximum(best, 1.0), 0.0)


# --- Along paths -----------------------------------------------------------------------------------------------------


def promise(
    values: Float[Array, "b t"],
    targets: Float[Array, "b t"],
    baseline: Float[Array, "b t"],
    weights: Float[Array, "b t"],
    before: Int[Array, "b t"],
    *,
    advantage_weight: float,
) -> Float[Array, ""]:
    """Promise and progress (AgentPRM, arXiv 2511.08325): L_Q + beta L_A, both as means over the states.

    L_Q is the squared error of Q_t; L_A that of the step's advantage Q_t - Q_{t-1} against target_t - baseline_{t-1}, for the
    states that follow another one. (In a deterministic environment without rewards on the way, the value of the state before an
    action is that of the action that led there.)

    Args:
      targets: of Q.
      baseline: what the advantage of the next step is measured from; the targets, or detached values for GAE.
      advantage_weight: beta.
    """
    values, targets, baseline = _masked(values, weights), _masked(targets, weights), _masked(baseline, weights)
    follows = (before >= 0) & (weights > 0)
    earlier = jnp.maximum(before, 0)
    progress = values - jnp.take_along_axis(values, earlier, axis=1)
    wanted = targets - jnp.take_along_axis(baseline, earlier, axis=1)
    errors = jnp.square(values - targets) + advantage_weight * jnp.where(follows, jnp.square(progress - wanted), 0.0)
    return weighted_mean(errors, weights)


def lambda_returns(
    values: Float[Array, "b t"],
    outcomes: Float[Array, "b t"],
    weights: Float[Array, "b t"],
    before: Int[Array, "b t"],
    counts: Float[Array, "b t"],
    *,
    td_lambda: float,
) -> Float[Array, "b t"]:
    """TD(lambda) targets of every state, from the model's own values: no gradient passes.

    G of a state that nothing follows is its outcome; of any other the mean, by `counts`, over the states j that follow it, of
    (1 - lambda) V_j + lambda G_j. On a path this is V_t + sum_l lambda^l delta_{t+l}, the estimate of GAE (arXiv 1506.02438, eq.
    16) with delta_t = V_{t+1} - V_t: rewards come at the end only and are not discounted. lambda = 1 gives the mean outcome.

    Args:
      outcomes: of states that nothing follows.
      counts: how often each state was reached from the one before it.
    """
    values, outcomes = jax.lax.stop_gradient((_masked(values, weights), _masked(outcomes, weights)))
    t = values.shape[1]
    counted = jnp.where((before >= 0) & (weights > 0), counts, 0.0)
    place = jnp.where(counted > 0, before, t)
    add = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=t + 1))
    following = add(counted, place)[:, :t]

    def back_up(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        found, _, rounds = carry
        mixed = counted * ((1 - td_lambda) * values + td_lambda * found)
        means = add(mixed, place)[:, :t] / jnp.maximum(following, 1e-9)
        new = jnp.where(following > 0, means, outcomes)
        return new, jnp.any(new != found), rounds + 1

    # A round a step of the longest path; the bound ends it where values are NaN, which equal nothing.
    start = (outcomes, jnp.bool_(True), jnp.int32(0))
    return jax.lax.while_loop(lambda carry: carry[1] & (carry[2] < t), back_up, start)[0]


def _masked(x: jax.Array, weights: jax.Array) -> jax.Array:
    """`x` with 0 where the weight is 0, so that a NaN there reaches neither the loss nor its gradient."""
    return jnp.where(weights > 0, x, 0.0)
