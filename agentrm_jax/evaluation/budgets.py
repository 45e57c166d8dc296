"""What methods cost beside what they earn: each against best-of-n with as many policy tokens."""

from collections.abc import Mapping, Sequence

from agentrm_jax.types import JSON

COUNTS = ("policy_tokens", "reward_tokens", "env_steps", "seconds")


def equal(results: Sequence[Mapping[str, JSON]]) -> JSON:
    """Methods by cost a task, and the curve of best-of-n they are held against; None without a result that has a curve over n.

    `{"reference": method, "curve": [{n, policy_tokens, reward_tokens, env_steps, seconds, best_of_n, oracle, random}],
    "methods": [{method, score, ci95, policy_tokens, reward_tokens, env_steps, seconds, n, same, beyond}]}`, all costs a task.

    A sample of the reference costs its budget over its samples (its reward tokens and seconds too: every sample is scored once). `n` is
    how many samples the method's policy tokens would have paid for, `same` what best-of-n earns with them (interpolated between whole n;
    with fewer than one, one), and `beyond` says that they pay for more samples than were drawn, so that `same` is a lower end.
    """
    reference = next((r for r in results if r.get("n_curve")), None)
    if reference is None:
        return None
    curve, tasks = reference["n_curve"], reference["overall"]["n"]
    most = curve[-1]["n"]
    each = {name: reference["budget"].get(name, 0) / tasks / most for name in COUNTS}
    points = [
        {"n": p["n"], **{name: p["n"] * cost for name, cost in each.items()}}
        | {name: p[name]["score"] for name in ("best_of_n", "oracle", "random")}
        for p in curve
    ]
    methods = []
    for r in results:
        spent = {name: r["budget"].get(name, 0) / r["overall"]["n"] for name in COUNTS}
        n = spent["policy_tokens"] / each["policy_tokens"] if each["policy_tokens"] else 0.0
        methods.append(
            {
                "method": r["method"],
                "score": r["overall"]["score"],
                "ci95": r["overall"]["ci95"],
                **spent,
                "n": n,
                "same": _at(n, points),
                "beyond": n > most * 1.001,
            }
        )
    return {"reference": reference["method"], "curve": points, "methods": methods}


def _at(n: float, points: Sequence[Mapping[str, float]]) -> float:
    """The curve at n samples, straight between its points and level beyond them."""
    before = points[0]
    for point in points:
        if n <= point["n"]:
            width = point["n"] - before["n"]
            part = min(max((n - before["n"]) / width, 0.0), 1.0) if width else 0.0
            return before["best_of_n"] + part * (point["best_of_n"] - before["best_of_n"])
        before = point
    return points[-1]["best_of_n"]


def lines(found: Mapping[str, JSON]) -> list[str]:
    """The comparison as aligned text, a line a method."""
    head = [
        "",
        "score",
        "policy tokens",
        "reward tokens",
        "env steps",
        "seconds",
        f"{found['reference']} for as many policy tokens",
    ]
    body = [
        [
            m["method"],
            f"{100 * m['score']:.1f}",
            *(f"{m[name]:,.0f}" for name in COUNTS[:3]),
            f"{m['seconds']:.2f}",
            f"{100 * m['same']:.1f} (n = {m['n']:.1f}{', more than were drawn' if m['beyond'] else ''})",
        ]
        for m in found["methods"]
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]]
