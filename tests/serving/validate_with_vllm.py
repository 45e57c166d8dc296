"""Reads answers (name of a class of vLLM -> a list of them) on standard input, as that class does; prints how many it took."""

import json
import sys

from record_vllm_schema import ANSWERS

if __name__ == "__main__":
    kinds = {kind.__name__: kind for kind in ANSWERS}
    answers = json.load(sys.stdin)
    for name, found in answers.items():
        for answer in found:
            kinds[name].model_validate(answer)
    print(sum(map(len, answers.values())))
