"""Writes a trained model as a Hugging Face folder that transformers (4 and 5) and vLLM load and score alike.

    python -m agentrm_jax.export WORKDIR OUT            a policy as *ForCausalLM, a reward model as *ForSequenceClassification
    python -m agentrm_jax.export WORKDIR OUT --tokens   a reward model as *ForTokenClassification: a value at every token
    python -m agentrm_jax.export WORKDIR OUT --adapter  the LoRA adapters of a run, for PEFT; without it they are merged

Besides weights, configuration, tokenizer and chat template the folder holds `example_scores.json`: inputs and what this
package computes for them, so that any server can be checked with one request.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.chat import Chat
from agentrm_jax.files import check_new_folder, new_folder, write_json
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.families import Head, config_to_hf
from agentrm_jax.models.peft import check_separate, write_peft
from agentrm_jax.models.pretrained import EXAMPLE_SCORES
from agentrm_jax.models.transformer import Transformer, token_logprobs, values
from agentrm_jax.models.weights import Params, build, tensors, with_mean_head
from agentrm_jax.prompts import Representation, represented
from agentrm_jax.run import command
from agentrm_jax.types import JSON, Message, UserError

SHARD_BYTES = 5 * 10**9

EXAMPLES: tuple[tuple[Message, ...], ...] = (
    (Message("user", "You are in a kitchen. Put the cup on the shelf."), Message("assistant", "Action: take cup")),
    (
        Message("user", "You are in a kitchen. Put the cup on the shelf."),
        Message("assistant", "Thought: the cup comes first.\nAction: take cup"),
        Message("user", "You hold the cup."),
        Message("assistant", "Action: put cup on shelf"),
    ),
    (Message("user", "Open the red door."), Message("assistant", "Action: wait")),
)


def write_hf(
    params: Params,
    config: ModelConfig,
    chat: Chat,
    out: Path,
    head: Head,
    *,
    shard_bytes: int = SHARD_BYTES,
    examples: Sequence[Sequence[Message]] = EXAMPLES,
    state: Representation = "default",
) -> None:
    """Writes a model as the Hugging Face folder `out`; weights keep their type, and reading them back gives the same bits.

    Raises:
      UserError: the parameters lack the head, padding equals end of turn, the family cannot express the model, or `out` is a
        file or a folder that is not empty.
    """
    needs = "value_d" if head != "CausalLM" else None if config.tie_embeddings else "head_dv"
    if needs and needs not in params:
        kind = "value head: it is no reward model" if needs == "value_d" else "language-model head: it is no policy"
        raise UserError(f"the model has no {kind}")
    params = {k: v for k, v in params.items() if k not in {"value_d", "head_dv"} - {needs}}
    check_new_folder(out)
    fields = config_to_hf(config, head, str(params["embed_vd"].dtype)) | _token_ids(chat)
    with new_folder(out) as draft:
        write_json(draft / "config.json", fields)
        if head == "CausalLM":
            write_json(draft / "generation_config.json", _token_ids(chat))
        _write_weights(params, config, draft, head, shard_bytes)
        write_tokenizer(chat.tokenizer, draft)
        write_json(draft / EXAMPLE_SCORES, example_scores(build(config, params), chat, head, examples, state=state))


def write_tokenizer(tokenizer: Any, out: Path) -> None:
    """Saves a fast tokenizer so that transformers 4 and 5 and vLLM load it.

    transformers 5 writes a class name and a list of special tokens that version 4 cannot read, and the chat template only as a
    file of its own, which older readers do not look for.
    """
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    fields.pop("backend", None)
    if isinstance(extra := fields.pop("extra_special_tokens", None), list):
        fields["additional_special_tokens"] = extra
    if tokenizer.chat_template:
        fields["chat_template"] = tokenizer.chat_template
    write_json(path, fields)


def example_scores(
    model: Transformer,
    chat: Chat,
    head: Head,
    conversations: Sequence[Sequence[Message]] = EXAMPLES,
    *,
    state: Representation = "default",
) -> dict[str, JSON]:
    """Conversations as token ids, with the numbers that the model gives them in float32.

    `score` is the value at the last token (the end of turn) of a reward model, `values` with it at every token; for a policy
    `logprob` is the sum over the last assistant turn, the last `logprob_tokens` ids. `state` is what a reward model reads of a
    conversation, if that is not all.
    """
    rows: list[dict[str, JSON]] = []
    for messages in (represented(one, state) for one in conversations):
        segments = chat.conversation(messages)
        ids = np.concatenate([s.tokens for s in segments])
        numbers = _evaluate(model, ids, head)
        row: dict[str, JSON] = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "text": chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            "input_ids": ids.tolist(),
        }
        if head == "CausalLM":
            count = len(segments[-1].tokens)
            row |= {"logprob": float(numbers[-count:].sum()), "logprob_tokens": count}
        else:
            row["score"] = float(numbers[-1])
            if head == "TokenClassification":
                row["values"] = [float(v) for v in numbers]
        rows.append(row)
    note = (
        "input_ids end with the end-of-turn token; send them as they are: no token added, activation off (raw logits)"
    )
    return {"note": note, **({} if state == "default" else {"state": state}), "examples": rows}


def _evaluate(model: Transformer, ids: np.ndarray, head: Head) -> np.ndarray:
    """float32[t]: log-probabilities of a policy, values of a reward model."""
    t = len(ids)
    room = -t % 64
    tokens = np.pad(ids, (0, room))[None].astype(np.int32)
    end = np.where(np.arange(t + room) < t, t, np.arange(t + room) + 1)[None].astype(np.int32)
    positions = np.where(np.arange(t + room) < t, np.arange(t + room), 0)[None].astype(np.int32)
    hidden = _hidden(model, tokens, positions, end)
    if head != "CausalLM":
        return np.asarray(values(model, hidden))[0, :t]
    previous = np.where(np.arange(t + room) < t, np.arange(t + room) - 1, -1)[None].astype(np.int32)
    return np.asarray(token_logprobs(model, hidden, jnp.asarray(tokens), jnp.asarray(previous)))[0, :t]


@jax.jit
def _hidden(model: Transformer, tokens: jax.Array, positions: jax.Array, end: jax.Array) -> jax.Array:
    return model(tokens, positions, end)


def _token_ids(chat: Chat) -> dict[str, JSON]:
    """The special ids that readers of the folder need. A classifier is read at the last token that is not padding."""
    pad = chat.tokenizer.pad_token_id
    if pad is None or pad == chat.end_id:
        raise UserError(
            "padding must be a token of its own, not missing and not the end of turn; set tokenizer.pad_token"
        )
    ids: dict[str, JSON] = {"pad_token_id": pad, "eos_token_id": chat.end_id}
    return ids | ({"bos_token_id": chat.tokenizer.bos_token_id} if chat.tokenizer.bos_token_id is not None else {})


def _write_weights(params: Params, config: ModelConfig, out: Path, head: Head, shard_bytes: int) -> None:
    """`model.safetensors`, or shards of at most `shard_bytes` with an index; holds one shard in memory."""
    from safetensors.numpy import save_file

    size = {jnp.dtype(a.dtype).itemsize for a in jax.tree.leaves(params)}
    shards: list[dict[str, Any]] = [{}]
    used = total = 0
    for name, shape, get in tensors(params, config):
        bytes_ = int(np.prod(shape)) * max(size)
        if used and used + bytes_ > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = get
        used, total = used + bytes_, total + bytes_
    if head == "TokenClassification":  # this class has a bias in every version of transformers
        shards[-1]["score.bias"] = lambda: np.zeros(1, params["embed_vd"].dtype)
    if len(shards) == 1:
        files = ["model.safetensors"]
    else:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    for file, shard in zip(files, shards, strict=True):
        save_file({name: get() for name, get in shard.items()}, out / file, metadata={"format": "pt"})
        (out / file).chmod((out / "config.json").stat().st_mode)  # safetensors makes files that only their owner reads


def _write_adapter(workdir: Path, model: Transformer, chat: Chat, out: Path, head: Head, state: Representation) -> None:
    """A folder for PEFT: adapters, value head, tokenizer, and examples with the numbers of base and adapters together."""
    from agentrm_jax.models.opening import load_adapters

    check_separate(model.config)
    adapters = load_adapters(workdir)
    with new_folder(out) as draft:
        write_peft(adapters.params, adapters.lora, adapters.base, draft, head)
        write_tokenizer(chat.tokenizer, draft)
        write_json(draft / EXAMPLE_SCORES, example_scores(model, chat, head, state=state))
    if (Path(adapters.base) / "model.json").exists():
        print(f"their base is a workdir; export it for PEFT too: python -m agentrm_jax.export {adapters.base} FOLDER")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (2 for what the user can mend)."""
    return command.exit_code(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = command.Parser(prog="python -m agentrm_jax.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="a training workdir")
    parser.add_argument("out", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--tokens", action="store_true", help="a reward model as *ForTokenClassification")
    parser.add_argument("--adapter", action="store_true", help="a run's LoRA adapters, not merged, as PEFT loads them")
    args = parser.parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # only its tokenizers are used; it warns about the rest
    check_new_folder(args.out)  # before the model is read

    from flax import nnx

    from agentrm_jax.models.opening import load_model

    loaded = load_model(args.workdir)
    params = with_mean_head(nnx.to_pure_dict(nnx.state(loaded.model, nnx.Param)))
    if args.tokens and "value_d" not in params:
        raise UserError(f"{args.workdir} holds a policy; --tokens is for reward models")
    is_reward = "value_d" in params
    head: Head = "CausalLM" if not is_reward else "TokenClassification" if args.tokens else "SequenceClassification"
    try:
        if args.adapter:
            _write_adapter(args.workdir, loaded.model, loaded.chat, args.out, head, loaded.state)
        else:
            write_hf(params, loaded.model.config, loaded.chat, args.out, head, state=loaded.state)
    except OSError as error:
        raise UserError(f"{args.out} cannot be written: {error}") from error
    print(f"wrote {args.out} ({head}, step {loaded.step})")
    if loaded.card and loaded.card.heads > 1:
        print(
            f"its {loaded.card.heads} value heads are written as one, their mean; how far they differ is not in the folder"
        )
    if loaded.state != "default":
        print(
            f"it was trained on conversations of the representation {loaded.state} (docs/models.md): other programs must give it such "
            f"ones; score and search read that in {EXAMPLE_SCORES}"
        )


if __name__ == "__main__":
    sys.exit(main())
