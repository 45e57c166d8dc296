"""Conversations with calls of tools: the ids are those of the template, and nothing that a row holds is dropped in silence."""

import contextlib
import dataclasses
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.chat import Chat, load_chat
from agentrm_jax.data import conversations, fields, files, labels
from agentrm_jax.data.messages import ROLES, read_messages, read_tools
from agentrm_jax.testing.families import FAMILIES, make_tokenizer
from agentrm_jax.types import UserError

DATA = Path(os.environ.get("AGENTRM_DATA", "../shared/data")) / "external"
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}}
]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Brno", "days": 3}'}}
ROW = {
    "tools": TOOLS,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is the weather in Brno?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I must look it up."},
        {"role": "tool", "tool_call_id": "c1", "content": "rain <|im_end|>"},
        {"role": "assistant", "content": " It rains. "},
    ],
}
# As several families write them: schemas in the system turn, calls as JSON, results in a user turn.
CALLS = (
    "{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% if tools %}{{ '\\ntools:' }}{% for t in tools %}{{ '\\n' + t | tojson }}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<result>\\n' + m.content + '\\n</result>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% elif m.role != 'system' %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\\n<call>' + c.function | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Only the newest turn shows its thought, in a form of its own, and every newest turn has one.
THINKS = CALLS.replace(
    "+ m.content }}",
    "}}{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}"
    "{% endif %}{{ m.content }}",
    2,
).replace("'\\n<result>\\n' }}{% if m.role == 'assistant' and loop.last %}", "'\\n<result>\\n' + ")


def chat_of(template: str = "", **options) -> Chat:
    family = FAMILIES["chatml"]
    return load_chat(make_tokenizer(dataclasses.replace(family, template=template or family.template)), **options)


def ids(segments) -> list[int]:
    return [int(t) for s in segments for t in s.tokens]


def read(row) -> conversations.Conversation:
    [one] = labels.of_row(files.Row(row, "t.jsonl, line 1", "t.jsonl", 1))[0].conversations
    return one


def without_thoughts(row: dict) -> dict:
    kept = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in row["messages"]]
    return {**row, "messages": kept}


@pytest.mark.parametrize("template", ["", CALLS], ids=["our chatml", "calls"])
def test_ids_are_those_of_apply_chat_template(template):
    row = without_thoughts(ROW) if template else ROW
    chat = chat_of(template, trust_special_tokens=True)
    asked = [dict(m, content=m["content"] or "") for m in row["messages"]]
    function = {"name": "weather", "arguments": {"city": "Brno", "days": 3}}
    asked[2]["tool_calls"] = [{**CALL, "function": function}]
    whole = chat.tokenizer.apply_chat_template(asked, tools=TOOLS, return_dict=False)
    parts = ids(conversations.segments(read(row), chat))
    assert parts == whole[: len(parts)]
    assert chat.tokenizer.decode(whole[len(parts) :]) == chat.tail


def test_a_call_is_learned_and_its_result_and_the_schemas_are_not():
    chat = chat_of()
    segments = conversations.segments(read(ROW), chat)
    assert [s.kind for s in segments] == ["prompt", "action", "observation", "action"]
    assert [s.loss for s in segments] == [False, True, False, True]
    prompt, call, result, answer = (chat.tokenizer.decode(s.tokens) for s in segments)
    assert '"weather"' in prompt
    assert "I must look it up." in call
    assert '{"name": "weather", "arguments": {"city": "Brno", "days": 3}}' in call
    assert "rain" in result
    assert answer == " It rains. <|im_end|>"


def test_a_result_cannot_end_a_turn():
    chat = chat_of()
    *_, result, _ = conversations.segments(read(ROW), chat)
    assert list(result.tokens).count(chat.end_id) == 1


ANTHROPIC = [
    {"role": "user", "content": "How is it?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I look."},
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "sky"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "blue"}]},
]
OPENAI = [
    {"role": "user", "content": "How is it?"},
    {
        "role": "assistant",
        "content": "Looking.",
        "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": '{"at": "sky"}'}}],
        "reasoning_content": "I look.",
    },
    {"role": "tool", "tool_call_id": "c1", "content": "blue"},
]
ALONE = [
    {"role": "user", "content": "How is it?"},
    {"role": "assistant", "content": "Looking."},
    {"role": "tool_call", "content": "{'name': 'look', 'arguments': '{\"at\": \"sky\"}'}"},
    {"role": "tool_response", "content": "blue"},
]
OLD = [
    {"from": "human", "value": "How is it?"},
    {"role": "assistant", "content": "Looking.", "function_call": {"name": "look", "arguments": '{"at": "sky"}'}},
    {"from": "observation", "value": "blue"},
]


def test_all_spellings_of_a_call_say_the_same():
    assert read_messages(ANTHROPIC, "messages") == read_messages(OPENAI, "messages")
    bare = [
        dataclasses.replace(m, more={k: v for k, v in m.more.items() if k == "tool_calls"})
        for m in read_messages(OPENAI, "messages")
    ]
    bare[1].more["tool_calls"][0].pop("id")
    assert list(read_messages(ALONE, "messages")) == bare
    assert list(read_messages(OLD, "messages")) == bare


def test_calls_in_a_row_are_one_turn_and_what_is_no_json_stays_a_text():
    call = {"role": "tool_call", "content": '{"name": "look", "arguments": "sky!"}'}
    _, assistant = read_messages([{"role": "user", "content": "x"}, call, call], "messages")
    assert [c["function"] for c in assistant.more["tool_calls"]] == [{"name": "look", "arguments": "sky!"}] * 2
    assert assistant.loss


FIELDS = st.sampled_from(
    [
        "role",
        "from",
        "content",
        "value",
        "type",
        "text",
        "name",
        "function",
        "arguments",
        "tool_calls",
        "function_call",
        "id",
        "loss",
        "thinking",
        "input",
        "tool_use_id",
        "reasoning_content",
    ]
)
MALFORMED = {
    "a dict that cannot be": {"role": "tool_call", "content": "{[]: 1}"},
    "values that JSON has not": {"role": "tool_call", "content": "{'name': 'look', 'arguments': {1, 2}}"},
    "no function": {"role": "tool_call", "content": "look"},
    "calls that are no list": {"role": "assistant", "content": "x", "tool_calls": {"name": "look"}},
    "a call that is no object": {"role": "assistant", "content": "x", "tool_calls": ["look"]},
    "a call of a user": {"role": "user", "content": "x", "tool_calls": [CALL]},
    "numbers without end": {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "look", "arguments": "[1e999]"}}],
    },
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_call_is_one_line(name):
    with pytest.raises(UserError, match=r"messages\[0\]"):
        read_messages([MALFORMED[name]], "messages")


def test_numbers_as_names_become_texts_as_json_writes_them():
    [turn] = read_messages(
        [{"role": "tool_call", "content": "{'name': 'look', 'arguments': {1: (2, None)}}"}], "messages"
    )
    assert turn.more["tool_calls"][0]["function"]["arguments"] == {"1": [2, None]}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["{'name': 1}", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(FIELDS, JSON | st.sampled_from([*ROLES, "tool_call", "look"]), max_size=6), max_size=4))
def test_whatever_a_row_holds_it_is_read_or_refused(rows):
    with contextlib.suppress(UserError):
        assert all(isinstance(m.content, str) for m in read_messages(rows, "messages"))
        assert len(read_tools({"tools": rows})) == len(rows)


LEFT_OUT = {
    "calls": (
        FAMILIES["qwen2.5"].template.replace("for call in m['tool_calls'] or []", "for call in []"),
        "tool_calls",
    ),
    "thoughts": (CALLS, "reasoning_content"),
    "schemas": (CALLS.replace("{% if tools %}", "{% if false %}"), "does not tell of tools .of weather."),
    "results": (
        CALLS.replace("+ m.content + '\\n</result>'", "+ '</result>'"),
        "content of a message with the role tool",
    ),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_a_template_leaves_out_is_refused_by_name(what):
    template, name = LEFT_OUT[what]
    row = ROW if what == "thoughts" else without_thoughts(ROW)
    with pytest.raises(UserError, match=f"t.jsonl, line 1: the chat template .*{name}"):
        conversations.segments(read(row), chat_of(template))


def test_a_template_that_rewrites_turns_can_keep_them_as_they_were_written():
    assert "loop.last" in THINKS
    with pytest.raises(UserError, match="keep instead of it keeps every turn as it was written"):
        chat_of(THINKS)
    chat = load_chat(make_tokenizer(dataclasses.replace(FAMILIES["chatml"], template=THINKS)), "keep")
    second = {"role": "assistant", "content": "It rains.", "reasoning_content": "So it says."}
    row = {**ROW, "messages": [*ROW["messages"][:4], second]}
    segments = conversations.segments(read(row), chat)
    texts = [chat.tokenizer.decode(s.tokens) for s in segments]
    assert "<think>\nI must look it up.\n</think>" in texts[1]
    assert "<result>\nrain <|im_end|>\n</result>" in texts[2]
    assert texts[3] == "<think>\nSo it says.\n</think>\n\nIt rains.<|im_end|>"
    newest = chat.tokenizer.apply_chat_template(
        row["messages"][:2], tools=TOOLS, add_generation_prompt=True, tokenize=False
    )
    assert texts[0] == newest


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded data at {DATA} (AGENTRM_DATA)")
def test_recorded_rows_are_read_without_loss():
    chat = chat_of()
    for path in sorted((DATA / "plan_rewardbench").glob("*.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in list(lines)[:8]:
                row = fields.parse(line, path.name)
                for one in labels.of_row(files.Row(row, path.name, path.name, 0))[0].conversations:
                    turns = sum(m.loss for m in one.messages)
                    assert sum(s.loss for s in conversations.segments(one, chat)) == turns > 0
    with lzma.open(DATA / "tau_bench" / "gpt-4o-airline.json.xz", "rt", encoding="utf-8") as file:
        for row in fields.parse(file.read(), "tau")[:8]:
            one = read(row)
            assert sum(s.loss for s in conversations.segments(one, chat)) == sum(m.loss for m in one.messages) > 0
