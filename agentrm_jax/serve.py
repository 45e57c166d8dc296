"""Serves a reward model, and a policy beside it, over HTTP: scores of trajectories, vLLM's and OpenAI's endpoints, search.

    python -m agentrm_jax.serve runs/nano/explicit --policy runs/nano/sft
    curl --data-binary @runs/nano/best_of_n/trajectories.jsonl http://127.0.0.1:8000/score

RM and POLICY are training workdirs or Hugging Face folders; RM may be `implicit:TUNED@BASE`. docs/serving.md has the endpoints. The server
listens on this machine only unless --host says otherwise; a key in the environment variable AGENTRM_KEY is then wanted as bearer token.
SIGTERM ends it once what is under way is answered. Nothing of a request is logged.
"""

import argparse
import importlib.util
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrm_jax import places
from agentrm_jax.models.card import READ_AT, read_card
from agentrm_jax.run import command
from agentrm_jax.run.devices import accelerator
from agentrm_jax.score import known_specs, load_reward_model, require_reward_model
from agentrm_jax.search import aggregate as aggregation
from agentrm_jax.types import UserError

if TYPE_CHECKING:
    from agentrm_jax.envs.spec import EnvSpec
    from agentrm_jax.serving.limits import Limits
    from agentrm_jax.serving.scorer import Scorer
    from agentrm_jax.serving.writer import Writer


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code (2 for what the user can mend)."""
    parser = command.Parser(prog="python -m agentrm_jax.serve", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rm", nargs="?", help="a training workdir, a Hugging Face folder, or implicit:TUNED@BASE")
    parser.add_argument("--policy", help="a training workdir or Hugging Face folder that writes texts")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000; 0: any that is free)")
    parser.add_argument("--name", help="of the reward model, for requests (default: RM as it is written)")
    parser.add_argument("--policy-name", help="of the policy (default: POLICY as it is written)")
    parser.add_argument("--aggregate", help="last, min, mean, sum, prod or max of the steps (default: the model's)")
    parser.add_argument("--step-reward", choices=("accumulated", "single"), default="accumulated", help="as of score")
    parser.add_argument("--read-at", choices=READ_AT, help="where a step's value is read (default: the model's)")
    parser.add_argument("--chat-template", default="", help="chatml, keep, or a file, instead of the tokenizers' own")
    parser.add_argument(
        "--env", action="append", default=[], metavar="MODULE", help="your own environment of our records"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default float32)")
    parser.add_argument("--max-length", type=int, help="tokens of a path (default: the models' limits, at most 8192)")
    parser.add_argument("--cache-tokens", type=int, help="slots of each model's cache (default: what fits 2 GiB)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests worked on at once (default 64)")
    parser.add_argument("--max-body", type=float, default=8, metavar="MIB", help="of a request (default 8)")
    parser.add_argument(
        "--max-items", type=int, default=256, help="trajectories, texts or samples of one (default 256)"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds of a request (default 300)")
    parser.add_argument("--arrival", type=float, default=20, help="seconds in which a request must arrive (default 20)")
    parser.add_argument("--stall", type=float, default=30, help="seconds a client may not read its answer (default 30)")
    parser.add_argument("--drain", type=float, default=30, help="seconds for what is under way at the end (default 30)")
    parser.add_argument("--key-variable", default="AGENTRM_KEY", help="environment variable with the key, if any")
    return command.exit_code(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    key, limits = _checked(args)
    rm = _place(args)
    from agentrm_jax.serving import app, server
    from agentrm_jax.serving.limits import Gate

    with server.bind(args.host, args.port) as listening:
        accelerator()
        scorer, specs = _scorer(args, rm) if rm else (None, {})
        writer = _writer(args) if args.policy else None
        gate = Gate(limits.concurrency)
        built = app.build(scorer, writer, specs, limits=limits, gate=gate, key=key)
        address, port = listening.getsockname()[:2]
        url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        if not key and not _is_loopback(address):
            print(
                f"note: anybody who reaches {url} can use it; set {args.key_variable} to ask for a key", file=sys.stderr
            )
        served = " and ".join(f"{one.name} ({one.limit} tokens)" for one in (scorer, writer) if one)
        server.run(built, listening, limits, gate, lambda: print(f"serving {served} at {url}", flush=True))
    return 0


def _checked(args: argparse.Namespace) -> "tuple[str, Limits]":
    """The key and the limits; all that can be checked before anything large is read."""
    if not args.rm and not args.policy:
        raise UserError("name a reward model, or a policy with --policy; see python -m agentrm_jax.serve --help")
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"serving needs {name}: pip install 'agentrm-jax[serve]'")
    for name in (
        "max_length",
        "cache_tokens",
        "concurrency",
        "max_items",
        "max_body",
        "timeout",
        "arrival",
        "stall",
        "drain",
    ):
        if (value := getattr(args, name)) is not None and not 0 < value < 1e9:
            raise UserError(f"--{name.replace('_', '-')}={value}: use a positive number")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port={args.port}: use 0 to 65535")
    if args.aggregate:
        aggregation.check(args.aggregate)
    key = os.environ.get(args.key_variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"the environment variable {args.key_variable} holds no key: it has blanks or odd signs in it")
    from agentrm_jax.serving.limits import Limits

    return key, Limits(
        concurrency=args.concurrency,
        connections=max(64, 4 * args.concurrency),
        body=int(args.max_body * (1 << 20)),
        items=args.max_items,
        seconds=args.timeout,
        arrival=args.arrival,
        stall=args.stall,
        drain=args.drain,
    )


def _place(args: argparse.Namespace) -> places.Place | None:
    """The reward model's place; refuses what is none, and policies that are none."""
    if args.policy and not isinstance(places.read(args.policy), places.Model):
        raise UserError(f"--policy={args.policy} cannot be served; name a training workdir or a model folder")
    if not args.rm:
        return None
    place = places.read(args.rm)
    require_reward_model(place, read_card(Path(place.place)) if isinstance(place, places.Model) else None)
    return place


def _scorer(args: argparse.Namespace, place: places.Place) -> "tuple[Scorer, Mapping[str, EnvSpec]]":
    """The reward model on its engine, warm, and the environments whose records it can score."""
    import numpy as np

    from agentrm_jax.engine.engine import make_engine
    from agentrm_jax.engine.requests import LogprobsRequest
    from agentrm_jax.prompts import told_as_policy
    from agentrm_jax.serving.scorer import Ratio, Scorer
    from agentrm_jax.serving.texts import Texts

    card = read_card(Path(place.place)) if isinstance(place, places.Model) else None
    specs = known_specs(card, args.env)
    if isinstance(place, places.Pair):
        specs = {name: told_as_policy(spec) for name, spec in specs.items()}
    how = {"template": args.chat_template, "step_reward": args.step_reward, "dtype": args.dtype}
    loaded, ratio = load_reward_model(place, card, **how)
    sizes = _sizes(args, loaded.model.config)
    models = [loaded.model, ratio.reference] if ratio else [loaded.model]
    engines = [make_engine(model, sizes, end_id=loaded.chat.end_id) for model in models]
    two = np.full(2, loaded.chat.end_id, np.int32)
    for engine in engines:
        engine.logprobs([LogprobsRequest(two, 1)]) if ratio else engine.score([two])
    scorer = Scorer(
        args.name or args.rm,
        engines,
        Texts(loaded.chat),
        read_at="end_of_turn" if ratio else args.read_at or loaded.read_at,
        aggregate=args.aggregate or (card.aggregate if card else "last"),
        longest=loaded.model.config.max_length,
        state=loaded.state,
        card=card,
        ratio=Ratio(ratio.beta, ratio.accumulated) if ratio else None,
    )
    return scorer, specs


def _writer(args: argparse.Namespace) -> "Writer":
    """The policy on its engine, warm."""
    import jax.numpy as jnp
    import numpy as np

    from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, SamplingParams
    from agentrm_jax.models.opening import load_model
    from agentrm_jax.serving.texts import Texts
    from agentrm_jax.serving.writer import StreamingEngine, Writer

    loaded = load_model(args.policy, template=args.chat_template, dtype=jnp.dtype(args.dtype))
    if hasattr(loaded.model, "value_d") or (loaded.card and not loaded.card.lm_head):
        raise UserError(f"--policy={args.policy} holds a reward model, which writes no text; name a policy")
    sizes = _sizes(args, loaded.model.config)
    dtype = jnp.dtype(sizes.pop("dtype"))
    texts = Texts(loaded.chat)
    config, end = EngineConfig(**sizes), loaded.chat.end_id
    engine = StreamingEngine(loaded.model, config, end_id=end, dtype=dtype, text=texts.decode)
    engine.generate([GenerateRequest(np.full(2, end, np.int32), SamplingParams(max_tokens=2))])
    return Writer(args.policy_name or args.policy, engine, texts, loaded.card)


def _sizes(args: argparse.Namespace, config: Any) -> dict[str, Any]:
    from agentrm_jax.serving.sizes import engine_sizes

    return engine_sizes(config, dtype=args.dtype, max_length=args.max_length, cache_tokens=args.cache_tokens)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
