"""Chat templates: Jinja programs that come with a model and are not trusted.

A template is rendered in Jinja's sandbox with bounds on time and size: no operation can make a value of more than `LENGTH` characters,
and every loop, macro and call looks at the clock. The date that a template asks for is the one it was compiled with.
"""

import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.sandbox
import jinja2.visitor

from agentrm_jax.types import UserError

LENGTH = 10_000_000  # characters of a rendered conversation, and of every value on the way to it
SECONDS = 5.0  # of one thread's processor time, for one rendering

CHATML = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
    "{{ 'Functions that can be called, as JSON schemas:\\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}"
    '{{ \'A call is written <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>\\n\' }}{% endif %}'
    "{% for m in messages %}{% if not (tools and loop.first and m['role'] == 'system') %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}"
    "{% if m['reasoning_content'] %}{{ '<think>\\n' + m['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}"
    "{% for call in m['tool_calls'] or [] %}{% if loop.first %}{{ m['content'] }}{% endif %}"
    "{{ ('\\n' if m['content'] or not loop.first else '') + '<tool_call>\\n' }}"
    "{{ '{\"name\": ' + call['function']['name'] | tojson + ', \"arguments\": ' + call['function']['arguments'] | tojson }}"
    "{{ '}\\n</tool_call>' + ('<|im_end|>' if loop.last else '') }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endfor %}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Template:
    """A compiled chat template, rendered as `transformers` renders it.

    Attributes:
      date: the date (ISO) that `strftime_now` tells; None if the template does not ask for it.
    """

    def __init__(self, source: str, date: str = ""):
        """Compiles `source`; `date` is today's if none is given.

        Raises:
          UserError: the source is no template, or the date is no date.
        """
        try:
            day = datetime.date.fromisoformat(date) if date else datetime.date.today()
        except ValueError:
            raise UserError(f"the date of the chat template must be written like 2025-01-31, not {date!r}") from None
        now = datetime.datetime.combine(day, datetime.time())
        environment = _Environment(now)
        try:
            if len(source) > LENGTH // 10:
                raise ValueError(f"it is longer than {LENGTH // 10:,} characters")
            tree = environment.parse(source)
            asks = any(name.name == "strftime_now" for name in tree.find_all(nodes.Name))
            code = environment.compile(_Checked().visit(tree))
        except Exception as error:  # a deeply nested one is a RecursionError
            raise UserError(f"the chat template cannot be compiled, so it refuses messages: {_line(error)}") from error
        self.date = day.isoformat() if asks else None
        self._program = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        self._environment = environment

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, generate: bool, tools: Sequence[Any] = (), **words: Any
    ) -> str:
        """The text of a conversation; `generate` adds the header of the next assistant turn, `words` are the special tokens.

        `tools` are the schemas of the functions that the model may call.

        Raises:
          UserError: the template raises, or takes too long.
        """
        self._environment.start()
        try:
            return self._program.render(
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=generate,
                **words,
            )
        except Exception as error:  # whatever a program can raise
            roles = ", ".join(m["role"] for m in messages)
            raise UserError(f"the chat template refuses messages with roles {roles}: {_line(error)}") from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}"


# Of no use in a chat template, and able to make much out of little.
_WITHOUT = ("batch", "center", "filesizeformat", "pprint", "random", "round", "slice", "urlize", "wordwrap", "xmlattr")
_GROWING = ("center", "encode", "expandtabs", "ljust", "rjust", "translate", "zfill")


class _BoundError(jinja2.TemplateError):
    """A template wants more time or space than it gets."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox with what chat templates expect, and with bounds."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: datetime.datetime):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed while compiling, where no bounds hold
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        self._running = threading.local()
        for name in _WITHOUT:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters |= {"tojson": _tojson, "replace": self._replace, "join": self._join, "indent": self._indent}
        self.filters |= {check.__name__: check for check in (self.tick, self.bounded, self.written, self.joined)}
        self.filters["format"] = lambda text, *args: self.call_binop(None, "%", str(text), args)
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": now.strftime,
            "dict": lambda *args, **fields: self.bounded(dict(*args, **fields)),
            "namespace": _Namespace,
        }

    def start(self) -> None:
        """Begins a rendering in this thread."""
        self._running.until, self._running.written, self._running.ticks = time.thread_time() + SECONDS, 0, 0

    def tick(self, value: Any = "") -> Any:
        """Looks at the clock now and then, and gives its argument back; called in every turn of a loop."""
        self._running.ticks += 1
        if self._running.ticks % 16 == 0 and time.thread_time() > self._running.until:
            raise _BoundError(f"it takes more than {SECONDS:g} seconds")
        return value

    def bounded(self, value: Any) -> Any:
        """The value, if it is small enough written out in full (a list may hold another one many times)."""
        self.tick()
        if isinstance(value, str):
            self._fits(len(value))
            return value
        size, rest = 0, [value]
        while rest:
            x = rest.pop()
            if isinstance(x, str):
                size += len(x)
            elif isinstance(x, list | tuple | set | range):
                size += 10 * len(x) + 1
                rest += () if isinstance(x, range) else x
            elif isinstance(x, dict):
                size += 10 * len(x) + 1
                rest += [*x, *x.values()]
            self._fits(size)
        return value

    def written(self, value: Any) -> Any:
        """The value, to be written; everything written in a rendering counts, also what is kept in a variable."""
        self.bounded(value)
        if isinstance(value, str):
            self._running.written += len(value)
            self._fits(self._running.written)
        return value

    def joined(self, *values: Any) -> str:
        return self.bounded("".join(str(self.bounded(v)) for v in values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            a, b = left.bit_length(), right.bit_length()
            self._fits({"*": a + b, "**": a * max(0, right)}.get(operator, 0) * 1000)
        elif operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(text, "__len__"):
                    self._fits((len(self.bounded(text)) + 1) * times)
        elif operator == "%" and isinstance(left, str):
            self._plain_format(left)
        return self.bounded(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr in _GROWING):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            self._plain_format(value.__self__)
        return wrapped

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.tick()
        text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str) and name == "replace" and len(args) > 1:
            __self._fits(text.count(args[0]) * len(args[1]))
        if isinstance(text, str) and name == "join" and args:
            args = (list(args[0]),)
            __self._fits(len(text) * len(__self.bounded(args[0])))
        return super().call(__context, __obj, *args, **kwargs)

    def _replace(self, text: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        self._fits(text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _join(self, values: Any, d: Any = "", attribute: Any = None) -> str:
        pick = jinja2.filters.make_attrgetter(self, attribute) if attribute is not None else None
        pieces = [str(self.bounded(pick(v) if pick else v)) for v in values]
        self._fits(len(pieces) * len(str(d)) + sum(map(len, pieces)))
        return str(d).join(pieces)

    def _indent(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        self._fits((len(width) if isinstance(width, str) else width) * (str(text).count("\n") + 1))
        return jinja2.filters.do_indent(str(text), width, first, blank)

    def _plain_format(self, text: str) -> None:
        """Refuses formats that write a value in a thousand places or more, or in as many as an argument says."""
        if re.search(r"\d{4}|%[^a-zA-Z%]*\*|:[^}]*\{", text):
            raise _BoundError("it formats numbers with a width of thousands")

    def _fits(self, size: float) -> None:
        if size > LENGTH:
            raise _BoundError(f"it makes a text of more than {LENGTH:,} characters")


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)`; written out it shows nothing, because it may hold itself."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}`: marks what the model writes, for others; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Checked(jinja2.visitor.NodeTransformer):
    """Puts the environment's checks into a parsed template."""

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            _call("written", nodes.Const(x.data) if isinstance(x, nodes.TemplateData) else x) for x in node.nodes
        ]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("tick")]))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("tick")]))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("bounded", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("bounded", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("bounded", node) if node.ctx == "load" else node


def _call(check: str, *values: nodes.Expr) -> nodes.Filter:
    first, *others = values or (nodes.Const(""),)
    return nodes.Filter(first, check, others, [], None, None)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and indent > 16:
        raise _BoundError("it indents JSON by more than 16 blanks")
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
