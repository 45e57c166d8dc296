"""What may be asked: the fields of every request, as vLLM 0.32 and OpenAI publish them, and our own.

A field is served, or has no effect on results and is taken (`WITHOUT_EFFECT`), or is refused by name unless it asks for nothing
(`NEUTRAL`). A field that nobody knows is refused too: it may be a misspelt one.
"""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field

from agentrm_jax.data.fields import shown
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.types import JSON

_OFF: tuple[JSON, ...] = (None, False)
_EMPTY: tuple[JSON, ...] = (None, [], {}, "")
_SEEDS = 2**63


class Contract(pydantic.BaseModel):
    """The fields of a request; `description` of a field is what is expected of it, for messages."""

    model_config = ConfigDict(extra="forbid", strict=True)
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    NEUTRAL: ClassVar[Mapping[str, tuple[JSON, ...]]] = {}

    model: str | None = Field(None, description="the name of a model, as /v1/models has it")


C = TypeVar("C", bound=Contract)


def read(kind: type[C], value: JSON) -> C:
    """The request that a JSON value holds.

    Raises:
      ServingError: it is no such request; names the field, what it holds and what is expected.
    """
    if not isinstance(value, dict):
        raise ServingError(400, f"the body is {shown(value)}; expected a JSON object")
    kept = {}
    for name, given in value.items():
        if name in kind.NEUTRAL:
            if not any(type(given) is type(none) and given == none for none in kind.NEUTRAL[name]):
                raise ServingError(400, f"{name} is {shown(given)}, which this server does not offer", param=name)
        elif name not in kind.WITHOUT_EFFECT:
            kept[name] = given
    try:
        return kind.model_validate(kept)
    except pydantic.ValidationError as error:
        raise _refusal(kind, kept, error) from None


def _refusal(kind: type[Contract], given: Mapping[str, JSON], error: pydantic.ValidationError) -> ServingError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden" and name not in kind.model_fields:
        known = [*kind.model_fields, *kind.WITHOUT_EFFECT, *kind.NEUTRAL]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return ServingError(400, f"there is no field {shown(name)}{hint}", param=name[:80])
    field = kind.model_fields.get(name)
    expected = field.description if field and field.description else first["msg"]
    if first["type"] == "missing":
        return ServingError(400, f"the request is without {name}; expected {expected}", param=name)
    return ServingError(400, f"{name} is {shown(given.get(name))}; expected {expected}", param=name)


# --- Values -----------------------------------------------------------------------------------------------------------

_POOLED = frozenset(("user", "priority", "request_id", "cache_salt", "mm_processor_kwargs", "media_io_kwargs"))


class Valued(Contract):
    """A request of /classify: texts, token ids or a conversation, and one value for each (vLLM's contract)."""

    WITHOUT_EFFECT = _POOLED
    NEUTRAL = {
        "padding": (None, "do_not_pad"),
        "add_generation_prompt": _OFF,
        "continue_final_message": _OFF,
        "chat_template": _EMPTY,
        "chat_template_kwargs": _EMPTY,
    }
    input: Any = Field(None, description="a text, a list of texts, token ids, or a list of lists of token ids")
    messages: Any = Field(None, description="a list of messages that ends with an assistant's")
    tools: Any = Field(None, description="a list of schemas of functions")
    add_special_tokens: bool | None = Field(None, description="true or false")
    use_activation: bool | None = Field(None, description="true, false or null")
    activation: bool | None = Field(None, description="true, false or null")  # an older name of the same
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description="a whole number from 1 on, -1 or null")
    truncation_side: Literal["left", "right"] | None = Field(None, description="left, right or null")

    @property
    def activated(self) -> bool:
        """Whether values go through a sigmoid, which is what the contract does unless it is told not to."""
        return next((v for v in (self.use_activation, self.activation) if v is not None), True)


class Pooled(Valued):
    """A request of /pooling (vLLM's contract)."""

    NEUTRAL = {**Valued.NEUTRAL, "dimensions": (None,)}
    task: Literal["classify"] | None = Field(None, description="classify or null, the only task of a reward model here")
    encoding_format: Literal["float", "base64"] = Field("float", description="float or base64")
    embed_dtype: Literal["float32"] = Field("float32", description="float32")
    endianness: Literal["native", "little", "big"] = Field("native", description="native, little or big")


class Trajectories(Contract):
    """A request of /score with several trajectories."""

    trajectories: list[Any] = Field(description="a list of trajectories, as `python -m agentrm_jax.score` reads them")
    aggregate: str | None = Field(None, description="last, min, mean, sum, prod or max")


# --- Texts ------------------------------------------------------------------------------------------------------------


class StreamOptions(pydantic.BaseModel):
    """What a stream reports beside its texts."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False


_TAKEN = frozenset(
    {
        *(
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "cache_salt",
            "verbosity",
        ),
        *("prompt_cache_retention", "parallel_tool_calls", "include_reasoning", "reasoning_effort", "stream_interval"),
        *("priority", "request_id", "session_id", "spaces_between_special_tokens", "length_penalty"),
    }
)
_NOT_OFFERED: Mapping[str, tuple[JSON, ...]] = {
    name: nothing
    for nothing, names in (
        ((None, 0, 0.0), "frequency_penalty presence_penalty min_tokens routed_experts_prompt_start"),
        (_EMPTY, "logit_bias bad_words allowed_token_ids logprob_token_ids vllm_xargs structured_outputs guided_json"),
        (
            _EMPTY,
            "guided_regex guided_choice guided_grammar repetition_detection kv_transfer_params ec_transfer_params",
        ),
        (_EMPTY, "mm_payload media_io_kwargs mm_processor_kwargs"),
        (_OFF, "echo use_beam_search return_token_offsets return_mm_kwargs watermarking"),
        ((None,), "prompt_logprobs thinking_token_budget truncate_prompt_tokens truncation_side"),
        ((None, {"type": "text"}), "response_format"),
        ((None, True), "skip_special_tokens"),
        ((None, 1), "best_of"),
    )
    for name in names.split()
}


class Sampled(Contract):
    """What requests for texts have in common (OpenAI's contract, with vLLM's further fields)."""

    WITHOUT_EFFECT = _TAKEN
    NEUTRAL = _NOT_OFFERED
    n: int | None = Field(None, ge=1, description="a whole number from 1 on")
    temperature: float | None = Field(None, ge=0, le=100, description="a number from 0 to 100")
    top_p: float | None = Field(None, gt=0, le=1, description="a number above 0, at most 1")
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="a whole number; 0 or -1 for all")
    min_p: float | None = Field(None, ge=0, le=1, description="a number from 0 to 1")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="a number above 0, at most 100")
    seed: int | None = Field(None, ge=-_SEEDS, lt=_SEEDS, description="a whole number of 64 bits")
    stop: str | list[str] | None = Field(None, max_length=10_000, description="a text or a list of texts")
    stop_token_ids: list[int] | None = Field(None, max_length=7, description="a list of at most 7 token ids")
    ignore_eos: bool | None = Field(None, description="true or false")
    include_stop_str_in_output: bool | None = Field(None, description="true or false")
    return_tokens_as_token_ids: bool | None = Field(None, description="true or false")
    return_token_ids: bool | None = Field(None, description="true or false")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(None, description="an object with include_usage")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


_TOKENS = "a whole number from 1 on"


class ChatCompletion(Sampled):
    """A request of /v1/chat/completions."""

    NEUTRAL = {
        **_NOT_OFFERED,
        **dict.fromkeys(("documents", "chat_template", "chat_template_kwargs", "functions", "audio"), _EMPTY),
        **dict.fromkeys(("continue_final_message", "add_special_tokens", "return_prompt_text"), _OFF),
        "add_generation_prompt": (None, True),
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "function_call": (None, "none", "auto"),
        "modalities": (None, ["text"]),
        "prediction": (None,),
        "web_search_options": (None,),
    }
    messages: Any = Field(description="a list of messages")
    max_tokens: int | None = Field(None, ge=1, description=_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, description=_TOKENS)
    logprobs: bool | None = Field(None, description="true or false")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="a whole number from 0 to 20")


class TextCompletion(Sampled):
    """A request of /v1/completions."""

    NEUTRAL = {**_NOT_OFFERED, "suffix": _EMPTY, "prompt_embeds": _EMPTY}
    prompt: Any = Field(description="a text, a list of texts, token ids, or a list of lists of token ids")
    max_tokens: int | None = Field(None, ge=1, description=_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=20, description="a whole number from 0 to 20")
    add_special_tokens: bool | None = Field(None, description="true or false")


class Searched(Contract):
    """A request of /v1/search: several answers to a conversation, ordered by the reward model."""

    messages: Any = Field(description="a list of messages")
    method: Literal["best_of_n", "beam"] = Field("best_of_n", description="best_of_n or beam")
    n: int = Field(5, ge=1, description="a whole number from 1 on")
    width: int = Field(3, ge=1, description="a whole number from 1 on")
    branch: int = Field(3, ge=1, description="a whole number from 1 on")
    max_rounds: int = Field(16, ge=1, le=256, description="a whole number from 1 to 256")
    delimiter: str = Field("\n\n", min_length=1, max_length=100, description="a text of 1 to 100 characters")
    temperature: float = Field(0.7, ge=0, le=100, description="a number from 0 to 100")
    top_p: float = Field(1.0, gt=0, le=1, description="a number above 0, at most 1")
    seed: int = Field(0, ge=-_SEEDS, lt=_SEEDS, description="a whole number of 64 bits")
    max_tokens: int | None = Field(None, ge=1, description=_TOKENS)
    aggregate: str | None = Field(None, description="last, min, mean, sum, prod or max")
