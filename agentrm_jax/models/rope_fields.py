"""What a `config.json` says of rotary positions, to `ModelConfig` and back.

Both generations of keys are read and written: transformers 4 (`rope_theta`, `rope_scaling`, and for layers with windows
`rope_local_base_freq`) and 5 (`rope_parameters`, where they differ by layer type one object for each type).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from agentrm_jax.models.config import ModelConfig, RopeScaling
from agentrm_jax.models.fields import positive, whole
from agentrm_jax.types import JSON, UserError

_LENGTH = "original_max_position_embeddings"
# Rope type -> the parameters it must have, and those it may have.
_KNOWN: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), {"factor"}),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, set()),
    "yarn": ({"factor"}, {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
    "dynamic": ({"factor"}, set()),
    "longrope": ({"short_factor", "long_factor"}, {"factor", "attention_factor"}),
}
_LISTS, _FLAGS = ("short_factor", "long_factor"), ("truncate",)


def read_rope(
    fields: Mapping[str, JSON],
    head_dim: int,
    *,
    theta: float,
    local_theta: float | None = None,
    by_layer: bool = False,
    partial: bool = False,
) -> dict[str, Any]:
    """The arguments of `ModelConfig` that say how its layers turn, and `max_length`.

    Args:
      theta: the family's base where none is given.
      by_layer: the family scales layers without a window only; layers with one have a base of their own, by default
        `local_theta`, or the base of the others.
      partial: the family may turn a part of the dimensions only.

    Raises:
      UserError: a rule or a parameter is not supported, or parameters are missing or no numbers.
    """
    rope = dict(fields.get("rope_scaling") or {}) | dict(fields.get("rope_parameters") or {})
    local: JSON = None
    if by_layer:
        local = rope.pop("sliding_attention", None)
        rope |= rope.pop("full_attention", None) or {}
    if any(isinstance(v, dict) for v in rope.values()):
        raise UserError("rope_parameters that differ by layer type are not supported for this family")
    found: dict[str, Any] = {"max_length": fields["max_position_embeddings"]}
    part = rope.pop("partial_rotary_factor", None)
    part = fields.get("partial_rotary_factor") if part is None else part
    if part not in (None, 1):
        if not partial or not positive(part) or part > 1:
            raise UserError(f"partial_rotary_factor={part!r} is not supported for this family")
        found["rotary_dim"] = int(head_dim * part)
    base = rope.pop("rope_theta", None) or fields.get("rope_theta") or theta
    kind, rope = _kind(rope)
    if kind == "yarn" and partial:
        kind = "longrope"  # its older name in files of this family
    _check(rope, base, kind)
    found |= {"rope_theta": float(base), "rope_scaling": _scaling(rope, kind, fields)}
    if kind in ("longrope", "dynamic"):
        found["max_length"] = found["rope_scaling"].original_length
    if by_layer:
        found["local_rope_theta"] = _local(local, fields, local_theta or float(base))
    return found


def write_rope(c: ModelConfig, *, by_layer: bool, partial: bool) -> dict[str, JSON]:
    """The fields for both generations, and the longest path that they are about."""
    rope = _scaling_to_hf(c.rope_scaling)
    fields: dict[str, JSON] = {"max_position_embeddings": c.max_length, "rope_theta": c.rope_theta}
    fields["rope_scaling"] = dict(rope) if c.rope_scaling else None
    if c.rope_scaling and c.rope_scaling.kind == "longrope":
        fields["max_position_embeddings"] = round(c.rope_scaling.factor * c.rope_scaling.original_length)
        fields[_LENGTH] = c.rope_scaling.original_length
    if partial:
        turned = c.rotary_dim or c.head_dim
        part = turned / c.head_dim
        if int(c.head_dim * part) < turned:
            part = math.nextafter(part, 1.0)
        rope["partial_rotary_factor"] = fields["partial_rotary_factor"] = part
        if fields["rope_scaling"]:
            fields["rope_scaling"]["partial_rotary_factor"] = rope["partial_rotary_factor"]
        fields.setdefault(_LENGTH, c.max_length)
    rope["rope_theta"] = c.rope_theta
    if not by_layer:
        return fields | {"rope_parameters": rope}
    local: dict[str, JSON] = {"rope_type": "default", "rope_theta": c.local_rope_theta}
    fields["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    return fields | {"rope_local_base_freq": c.local_rope_theta}


def _kind(rope: Mapping[str, JSON]) -> tuple[str, dict[str, JSON]]:
    """The rope type, and the other parameters that are given."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise UserError(f"rope type {kind!r} is not supported; supported are {', '.join(_KNOWN)}")
    return kind, {k: v for k, v in rope.items() if k not in ("rope_type", "type") and v is not None}


def _check(rope: Mapping[str, JSON], theta: JSON, kind: str) -> None:
    needed, optional = _KNOWN[kind]
    if more := sorted(rope.keys() - needed - optional - {_LENGTH}):
        raise UserError(f"rope parameters that are not supported for {kind!r} rope: {', '.join(more)}")
    numbers = {"rope_theta": theta} | ({} if kind == "default" else dict(rope))
    wrong = [
        f"{name}={value!r}"
        for name, value in numbers.items()
        if name not in (*_LISTS, *_FLAGS, _LENGTH) and not positive(value)
    ]
    if wrong:
        raise UserError(f"rope parameters that are no numbers above 0: {', '.join(wrong)}")
    for name in _LISTS:
        value = rope.get(name, [])
        if not isinstance(value, list) or not all(map(positive, value)):
            raise UserError(f"rope parameter {name} must be a list of numbers above 0")
    if not isinstance(rope.get("truncate", True), bool):
        raise UserError(f"rope parameter truncate={rope['truncate']!r} must be true or false")
    if missing := sorted(needed - rope.keys()):
        raise UserError(f"{kind!r} rope needs {', '.join(missing)}")


def _scaling(rope: Mapping[str, JSON], kind: str, fields: Mapping[str, JSON]) -> RopeScaling | None:
    longest = fields["max_position_embeddings"]
    length = fields.get(_LENGTH) or rope.get(_LENGTH) or longest
    if not whole(length):
        raise UserError(f"{_LENGTH}={length!r} must be a whole number above 0")
    match kind:
        case "linear":
            return RopeScaling("linear", float(rope["factor"]))
        case "llama3":
            low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
            if not low < high:
                raise UserError(f"'llama3' rope needs low_freq_factor below high_freq_factor, not {low} and {high}")
            return RopeScaling("llama3", float(rope["factor"]), low, high, length)
        case "yarn":
            factor = float(rope["factor"])
            numbers: dict[str, Any] = {k: float(rope[k]) for k in ("beta_fast", "beta_slow") if k in rope}
            truncate = rope.get("truncate", True)
            scaling = RopeScaling("yarn", factor, original_length=length, truncate=truncate, **numbers)
            return _with_amplitude(scaling, rope, _yarn_amplitude(factor, rope))
        case "dynamic":
            return RopeScaling("dynamic", float(rope["factor"]), original_length=min(length, longest))
        case "longrope":
            if not 1 < length <= longest:
                raise UserError(f"{_LENGTH}={length} must be more than 1, and not more than max_position_embeddings")
            factor = longest / length
            stretched = float(rope.get("factor", factor))
            amplitude = math.sqrt(1 + math.log(stretched) / math.log(length)) if stretched > 1 else 1.0
            short, long_ = (tuple(map(float, rope[name])) for name in _LISTS)
            scaling = RopeScaling("longrope", factor, original_length=length, short_factors=short, long_factors=long_)
            return _with_amplitude(scaling, rope, amplitude)
    return None


def _with_amplitude(scaling: RopeScaling, rope: Mapping[str, JSON], default: float) -> RopeScaling:
    return dataclasses.replace(scaling, amplitude=float(rope.get("attention_factor", default)))


def _yarn_amplitude(factor: float, rope: Mapping[str, JSON]) -> float:
    """YaRN's rule for the amplitude (arXiv 2309.00071, equation 22), with DeepSeek's two weights of it where both are given."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weight, all_ = rope.get("mscale"), rope.get("mscale_all_dim")
    return of(float(weight)) / of(float(all_)) if weight and all_ else of(1.0)


def _local(local: JSON, fields: Mapping[str, JSON], default: float) -> float:
    """The base of layers with windows, which must not be scaled."""
    if local is not None and not isinstance(local, dict):
        raise UserError(f"sliding_attention={local!r} of rope_parameters must be an object")
    local = dict(local or {})
    theta = local.pop("rope_theta", None) or fields.get("rope_local_base_freq") or default
    kind, rest = _kind(local)
    if kind != "default":
        raise UserError(f"rope type {kind!r} for layers with windows is not supported")
    _check(rest, theta, kind)
    return float(theta)


def _scaling_to_hf(s: RopeScaling | None) -> dict[str, JSON]:
    if s is None:
        return {"rope_type": "default"}
    rope: dict[str, JSON] = {"rope_type": s.kind}
    if s.kind != "longrope":
        rope["factor"] = s.factor
    if s.kind == "llama3":
        rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    if s.kind == "yarn":
        rope |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
    if s.kind == "longrope":
        rope |= {"short_factor": list(s.short_factors), "long_factor": list(s.long_factors)}
    if s.kind in ("yarn", "longrope"):
        rope["attention_factor"] = s.amplitude
    if s.kind in ("llama3", "yarn", "longrope"):
        rope[_LENGTH] = s.original_length
    return rope
