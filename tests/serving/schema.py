"""Whether a value is what a recorded JSON schema says (the words that pydantic's schemas use)."""

from typing import Any

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fault(value: Any, schema: dict[str, Any], whole: dict[str, Any], place: str = "answer") -> str:
    """What is wrong with a value, by place; empty if nothing is. `whole` has the definitions that `$ref` names."""
    if "$ref" in schema:
        return fault(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, place)
    if "anyOf" in schema:
        faults = [fault(value, one, whole, place) for one in schema["anyOf"]]
        return "" if not all(faults) else faults[0]
    if "const" in schema and value != schema["const"]:
        return f"{place} is {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{place} is {value!r}, none of {schema['enum']}"
    if "type" in schema:
        kind = schema["type"]
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "number")):
            return f"{place} is {value!r}, no {kind}"
    if isinstance(value, dict):
        if missing := [name for name in schema.get("required", ()) if name not in value]:
            return f"{place} is without {missing}"
        for name, one in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            if inner is False:
                return f"{place} has {name}, which is no field of it"
            if isinstance(inner, dict) and (found := fault(one, inner, whole, f"{place}.{name}")):
                return found
    if isinstance(value, list) and "items" in schema:
        return next(
            (f for i, one in enumerate(value) if (f := fault(one, schema["items"], whole, f"{place}[{i}]"))), ""
        )
    return ""
