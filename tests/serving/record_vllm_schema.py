"""Records what vLLM's published classes of requests and answers hold, as JSON schema without its words.

python tests/serving/record_vllm_schema.py     in an environment with vllm 0.32; writes vllm_schema.json beside this file
"""

import json
from pathlib import Path

import vllm
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse, CompletionStreamResponse
from vllm.entrypoints.pooling.classify.protocol import (
    ClassificationChatRequest,
    ClassificationCompletionRequest,
    ClassificationResponse,
)
from vllm.entrypoints.pooling.pooling.protocol import PoolingChatRequest, PoolingCompletionRequest, PoolingResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelList

ANSWERS = (
    *(ClassificationResponse, PoolingResponse, ErrorResponse, ModelList),
    *(ChatCompletionResponse, ChatCompletionStreamResponse, CompletionResponse, CompletionStreamResponse),
)
REQUESTS = (
    *(ClassificationCompletionRequest, ClassificationChatRequest, PoolingCompletionRequest, PoolingChatRequest),
    *(ChatCompletionRequest, CompletionRequest),
)


def without_words(value):
    if isinstance(value, dict):
        return {
            k: without_words(v)
            for k, v in value.items()
            if k == "properties" or k not in ("description", "title", "default") or isinstance(v, dict)
        }
    return [without_words(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    recorded = {
        "vllm": vllm.__version__,
        "answers": {kind.__name__: without_words(kind.model_json_schema()) for kind in ANSWERS},
        "requests": {kind.__name__: sorted(kind.model_fields) for kind in REQUESTS},
    }
    path = Path(__file__).with_name("vllm_schema.json")
    path.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    print(path, path.stat().st_size)
