"""Chat templates as untrusted programs: rendered as transformers renders them, within bounds, and nothing they do is a traceback."""

import datetime

import pytest

from agentrm_jax import templates
from agentrm_jax.templates import CHATML, Template
from agentrm_jax.types import UserError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " a <b> \n\n"},
    {"role": "assistant", "content": "<think>x</think>c"},
]

PUBLISHED_MEANS = {
    "chatml": CHATML,
    "namespace, reversed messages, slices": (
        "{%- set ns = namespace(last=0, seen=[]) %}{%- for m in messages[::-1] %}{%- set i = (messages | length - 1) - loop.index0 %}"
        "{%- if m.role == 'user' and not ns.last %}{%- set ns.last = i %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}{%- if loop.index0 > ns.last %}{{- '<' ~ m.role ~ '>' ~ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{%- else %}{{- m.content | trim }}{%- endif %}{%- endfor %}"
    ),
    "blocks and white space": (
        "{% for m in messages %}\n    {% if m.role == 'user' %}\n  U {{ m.content }}\n    {% endif %}\n{% endfor %}\nend\n"
    ),
    "loop controls and macros": (
        "{% macro line(m, n=1) %}{{ m.role | upper }}:{{ n }}{{ caller() if caller else '' }}\n{% endmacro %}"
        "{% for m in messages if m.role != 'system' %}{% if loop.index > 5 %}{% break %}{% endif %}{{ line(m, loop.index) }}"
        "{% call line(m) %}{{ loop.index }}{% endcall %}{% endfor %}"
    ),
    "json, lists, numbers": (
        "{{ messages | tojson }}{{ {'a': [1, (2, 3)], 'ü': 'é<'} | tojson(indent=2) }}{{ (1 + 2) * 3 % 5 ** 2 }}{{ 7 // 2 }}{{ 1 / 2 }}"
        "{{ ['a', 'b'] + ['c'] | list }}{{ '%s-%d' | format('x', 3) }}{{ '%s' % 'y' }}{{ '{}'.format(4) }}{{ 'ab' * 3 }}{{ -1 }}"
    ),
    "filters and tests": (
        "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ 'a-b' | replace('-', '+') }}{{ 'l1\nl2' | indent(2) }}{{ messages[0].content | first }}{{ messages is iterable }}"
        "{{ tools is none }}{{ missing is defined }}{{ missing }}{{ bos_token }}"
        "{{ messages | map(attribute='role') | unique | sort | join }}{{ add_generation_prompt }}"
        "{{ messages[1].items() | list }}{{ 'x' in 'xyz' }}{{ [3, 1] | sort | last }}{{ dict(a=1) | items | list }}"
    ),
    "captured text": (
        "{% set x %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ x }}{% filter upper %}{{ x }}{% endfilter %}"
    ),
    "the clock": "{{ strftime_now('%Y') }}{% generation %}{% set y = 1 %}{{ messages[0].role }}{% endgeneration %}{{ y }}",
}


@pytest.mark.parametrize("name", PUBLISHED_MEANS)
@pytest.mark.parametrize("generate", [False, True])
def test_text_is_what_transformers_renders(tokenizer, name, generate):
    words = {**tokenizer.special_tokens_map, "bos_token": "<s>"}
    theirs = tokenizer.apply_chat_template(
        MESSAGES, chat_template=PUBLISHED_MEANS[name], tokenize=False, add_generation_prompt=generate, **words
    )
    assert Template(PUBLISHED_MEANS[name]).render(MESSAGES, generate=generate, **words) == theirs


def test_the_clock_stands_at_the_date_given():
    template = Template("{{ strftime_now('%d %b %Y %H:%M') }}", "2024-02-29")
    assert template.render([], generate=False) == "29 Feb 2024 00:00"
    assert template.date == "2024-02-29"
    assert Template("{{ strftime_now('%d') }}").date == datetime.date.today().isoformat()
    assert Template("strftime_now").date is None


GROWS = "{% set ns = namespace(x='ab', y=[1]) %}{% for i in range(60) %}"
HOSTILE = {
    "product": "{{ 'x' * 300000000 }}",
    "product of a list": "{{ [1] * 10 ** 9 }}",
    "power": "{{ (9 ** 9) ** (9 ** 9) }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "much work in a loop": "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubled by +": GROWS + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by ~": GROWS + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled by writing": GROWS + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "doubled lists": GROWS + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.y }}",
    "doubled dicts": GROWS + "{% set ns.y = dict(a=ns.y, b=ns.y) %}{% endfor %}{{ ns.y | tojson }}",
    "much text": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "width": "{{ '%999999999d' % 1 }}",
    "width by filter": "{{ '%*d' | format(999999999, 1) }}",
    "width by method": "{{ '{:{}}'.format(1, 999999999) }}",
    "padding": "{{ 'x'.ljust(10 ** 9) }}",
    "indentation": "{{ 'a' | indent(10 ** 9, true) }}",
    "indented JSON": "{{ messages | tojson(indent=10 ** 9) }}",
    "replacement": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "replacement by filter": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "joined": "{{ ('y' * 99999).join('x' * 99999) }}",
    "joined by filter": "{{ range(99999) | join('y' * 99999) }}",
    "bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "division": "{{ 1 / 0 }}",
    "missing name": "{{ missing.name }}",
    "another file": "{% include 'x' %}",
    "Python's insides": "{{ ''.__class__.__mro__ }}",
    "changed messages": "{{ messages.append(1) }}",
    "its own complaint": "{{ raise_exception('no\nmessages') }}",
    "random": "{{ [1, 2] | random }}",
    "no end": "{% for m in messages %}",
    "deep": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "too long": "x" * 2_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_out_of_bounds_is_one_line_in_little_time(name, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.3)
    with pytest.raises(UserError, match=r"^the chat template .*refuses messages.*: ") as caught:
        Template(HOSTILE[name]).render(MESSAGES, generate=True)
    assert "\n" not in str(caught.value)


def test_a_long_conversation_is_within_bounds():
    messages = [{"role": "user", "content": "x" * 10_000}, {"role": "assistant", "content": "y" * 100}] * 300
    assert len(Template(CHATML).render(messages, generate=True)) > 3_000_000
