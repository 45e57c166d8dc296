"""The application: which path is answered by what."""

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agentrm_jax.engine.engine import Engine
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.models.card import Card
from agentrm_jax.serving.completions import Completions
from agentrm_jax.serving.contracts import ChatCompletion, Pooled, Searched, TextCompletion, Trajectories, Valued
from agentrm_jax.serving.exchange import Exchange, install_errors
from agentrm_jax.serving.faults import ServingError
from agentrm_jax.serving.limits import Gate, Limits
from agentrm_jax.serving.metrics import CONTENT_TYPE, Metrics
from agentrm_jax.serving.scorer import Scorer
from agentrm_jax.serving.searching import Search
from agentrm_jax.serving.values import Values
from agentrm_jax.serving.writer import Writer
from agentrm_jax.types import JSON


def build(
    scorer: Scorer | None,
    writer: Writer | None,
    specs: Mapping[str, EnvSpec],
    *,
    limits: Limits,
    gate: Gate,
    key: str = "",
) -> FastAPI:
    """The application that serves a reward model, a policy, or both.

    Args:
      specs: environments whose records can be scored.
      key: what requests must bring as bearer token; empty for none.
    """
    metrics = Metrics(_engines(scorer, writer), gate)
    exchange = Exchange(limits, gate, metrics, key)
    app = FastAPI(title="agentrm_jax", docs_url=None, redoc_url=None, redirect_slashes=False)
    install_errors(app)
    if scorer:
        values = Values(scorer, specs, limits)
        exchange.post(app, "/score", values.score, Trajectories, "Scores of the steps of trajectories")
        exchange.post(app, "/classify", values.classify, Valued, "Values of texts, token ids or a conversation")
        exchange.post(app, "/pooling", values.pool, Pooled, "The same, as lists of numbers")
    if writer:
        completions = Completions(writer, limits)
        exchange.post(app, "/v1/chat/completions", completions.chat, ChatCompletion, "Replies to a conversation")
        exchange.post(app, "/v1/completions", completions.complete, TextCompletion, "Continuations of texts")
    if scorer and writer:
        search = Search(writer, scorer, limits)
        exchange.post(app, "/v1/search", search.search, Searched, "Answers, the best by the reward model first")

    cards = [_card(one) for one in (scorer, writer) if one]

    def health(_: Request) -> Response:
        status = "draining" if gate.draining else "ok"
        return JSONResponse({"status": status}, 503 if gate.draining else 200)

    def model(request: Request) -> Response:
        name = request.path_params["name"]
        found = next((card for card in cards if card["id"] == name), None)
        if found is None:
            raise ServingError(404, "there is no model of this name; see /v1/models")
        return JSONResponse(found)

    exchange.get(app, "/health", health, "Whether the server answers", open_=True)
    exchange.get(app, "/metrics", lambda _: Response(metrics.text(), media_type=CONTENT_TYPE), "Counts for Prometheus")
    exchange.get(app, "/v1/models", lambda _: JSONResponse({"object": "list", "data": cards}), "The models")
    exchange.get(app, "/v1/models/{name:path}", model, "One model")
    return app


def _engines(scorer: Scorer | None, writer: Writer | None) -> dict[str, Engine]:
    found: dict[str, Engine] = {}
    if scorer:
        found |= dict(zip(("reward", "reference"), scorer.engines, strict=False))
    return found | ({"policy": writer.engine} if writer else {})


def _card(one: Scorer | Writer) -> dict[str, JSON]:
    """What /v1/models says of a model: OpenAI's and vLLM's fields, and what its card says."""
    row: dict[str, JSON] = {"id": one.name, "object": "model", "created": 0, "owned_by": "agentrm_jax"}
    row |= {"root": one.name, "parent": None, "max_model_len": one.limit}
    if isinstance(one, Scorer):
        row |= {"kind": "implicit" if one.ratio else "explicit", "aggregate": one.aggregate, "read_at": one.read_at}
        row |= {"label": "LABEL_0", "num_classes": 1}
    else:
        row["kind"] = "policy"
    return row | _told(one.card)


def _told(card: Card | None) -> dict[str, JSON]:
    if card is None:
        return {}
    texts = {name: {"source": t.source, "digest": t.digest} for name, t in card.texts.items()}
    return {"loss": card.loss, "base": card.base, "trained_on": texts}
