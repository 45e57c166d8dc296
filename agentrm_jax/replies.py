"""How an assistant turn is read: thought and command.

    Thought: The ball is behind the door.
    Action: open red door

The rule, the same for all environments and for search:

1. Text between `<think>` and `</think>` is not read; a block that is never closed lasts to the end of the turn, and one whose
   beginning is missing (a template may write it) starts with the turn.
2. A line that begins with `Observation:`, or a literal token that ends or begins a turn, is the end of a round: what follows is
   imagined. The first round with an action counts, however many there are.
3. In this round the first action after the last thought is taken; actions without a command are skipped.
4. A label begins its line. Indentation, list marks, `>`, `#`, emphasis, a number, any case and a fullwidth colon are allowed. In a
   round without such a line, a label that follows the end of a sentence counts as well (`Thought: It is open. Action: go`).
5. A command is the rest of the label's line, or the next line if that is empty. A fenced block after the label gives its content.
   Quotes or backticks around the whole command are taken off, unless it is fenced.

Environments whose commands span lines (SQL, code) declare it; their command is the fenced block after the label, or all lines up
to the next label.
"""

import dataclasses
import re

_EDGE = r"[\s\u200b\ufeff]*"
_MARKS = rf"{_EDGE}(?:(?:>|[-*+•]\s|\d{{1,2}}[.)]\s|#{{1,6}}(?!#))\s*)*"  # list, quotation, heading
_NUMBER = r"(?:\s*#?\d{1,3})?"
_COLON = r"\s*(?:[*_]{1,3}\s*)?[:：]"


def _label(words: str) -> re.Pattern[str]:
    """A label at the start of a line, with its colon; a heading (`## Action`, `**Action**`) that fills the line needs none."""
    name = rf"(?:{words}){_NUMBER}"
    return re.compile(
        rf"{_MARKS}(?P<emphasis>[*_]{{0,3}}){name}{_COLON}"
        rf"|{_EDGE}(?:#{{1,6}}\s*[*_]{{0,3}}|[*_]{{2,3}}){name}[*_]{{0,3}}\s*$",
        re.IGNORECASE,
    )


_ACTION = _label("action")
_THOUGHT = _label("thought")
_OBSERVATION = _label("observation")
_ANY = _label("observation|thought|action")
# In commands of several lines `# Action:` may be a comment and `- action:` data: only plain labels end them.
_PLAIN = re.compile(rf"[ \t]*[*_]{{0,3}}(?:observation|thought|action){_NUMBER}{_COLON}", re.IGNORECASE)
_INLINE = re.compile(
    rf"([.!?;…。！？][\"'”’)\]]*)[^\S\n]*(?=[*_]{{0,3}}(?:Thought|Action|ACTION|Observation){_NUMBER}{_COLON})"
)
_THINK = re.compile(r"<(/?)think(?:ing)?\s*>|\[(/?)THINK\]", re.IGNORECASE)
# Tokens that end or begin a turn in one of the usual templates, written out.
_TURN = re.compile(
    r"<\|\w{1,40}\|>|<｜[^｜\n]{1,40}｜>|<(?:end|start)_of_(?:turn|utterance)>|</s>|<eos>|\[/?INST\]|\[EOS\]"
)
_BREAK = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_QUOTES = {"`": "`", '"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}


@dataclasses.dataclass(frozen=True, slots=True)
class Parsed:
    """What was read from a turn.

    Attributes:
      command: the bare command, or None if the turn holds none.
      thought: the text before the action, without its `Thought:` label and without `<think>` blocks; the whole turn if there is no
        action.
      lenient: the command was readable, but not written as `Action: command` on a line of its own.
    """

    command: str | None
    thought: str
    lenient: bool


def parse_action(text: str, *, multiline: bool = False) -> Parsed:
    """Reads thought and command from an assistant turn by the rule above; never raises."""
    before: list[str] = []
    for part in _TURN.split(_without_thinking(text)):
        lines = _BREAK.split(part)
        if found := _find(lines, multiline):
            return Parsed(found.command, _thought([*before, *found.before]), found.lenient)
        before += lines
    label = next((i for i, line in enumerate(before) if _ACTION.match(line)), len(before))
    return Parsed(None, _thought(before[:label]), False)


def render_action(thought: str, command: str) -> str:
    """The assistant turn that `parse_action` reads back; no thought line if `thought` is empty.

    A command goes into a fenced block where it spans lines, or where quotes around it would be taken off.
    """
    action = f"Action: {command}"
    if "\n" in command or _FENCE.match(command) or _unquoted(command) != command.strip():
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
        action = f"Action:\n{fence}\n{command}\n{fence}"
    return f"Thought: {thought}\n{action}" if thought else action


def _without_thinking(text: str) -> str:
    kept, start, inside = "", 0, False
    for tag in _THINK.finditer(text):
        closes = bool(tag[1] or tag[2])
        if not inside and not closes:
            kept += text[start : tag.start()] + "\n"
            inside = True
        elif closes:
            kept, inside = (kept if inside else ""), False
            start = tag.end()
    return kept if inside else kept + text[start:]


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """The action to execute, and the lines before it."""

    before: list[str]
    command: str
    lenient: bool


def _find(lines: list[str], multiline: bool) -> _Found | None:
    """The action of the first round of these lines that has one."""
    found: _Found | None = None
    start, i, thought = 0, 0, True  # `thought`: the next action is the first of its round, or after a thought
    while i <= len(lines):
        if i > start and (i == len(lines) or _OBSERVATION.match(lines[i])):
            found = found or _inline(lines[:start], lines[start:i], multiline)
            if found:
                return found
            start, thought = i, True
        if i == len(lines):
            break
        if label := _ACTION.match(lines[i]):
            command, lenient, end = _command(lines, i, label, multiline)
            if command and thought:
                found, thought = _Found(lines[:i], command, lenient), False
            i = end
        else:
            thought = thought or bool(_THOUGHT.match(lines[i]))
            i += 1
    return None


def _inline(before: list[str], lines: list[str], multiline: bool) -> _Found | None:
    """The action of a round in which no line begins with one: labels after the end of a sentence count too."""
    spread = _INLINE.sub(r"\1\n", "\n".join(lines)).split("\n")
    found = _find(spread, multiline) if len(spread) > len(lines) else None
    return dataclasses.replace(found, before=[*before, *found.before], lenient=True) if found else None


def _command(lines: list[str], at: int, label: re.Match[str], multiline: bool) -> tuple[str, bool, int]:
    """(command, lenient, index of the line to go on with) of the action whose label stands in line `at`."""
    first = lines[at][label.end() :].strip()
    lenient = label[0] != "Action:"
    if label["emphasis"]:
        first = first.strip("*_ \t")  # of `**Action:** go` and `**Action: go**`
    begin = at if first else next((i for i in range(at + 1, len(lines)) if lines[i].strip()), at)
    opening = first if begin == at else lines[begin]
    if fence := _FENCE.match(opening):
        content, end = _fenced(lines, begin, fence[1], opening[fence.end() :].strip())
        if multiline:
            return "\n".join(content).strip(), lenient, end
        command = next((line.strip() for line in content if line.strip()), "")
        return ("" if _ANY.match(command) else command), True, at + 1
    if multiline:
        end = next((i for i in range(at + 1, len(lines)) if _PLAIN.match(lines[i])), len(lines))
        command = "\n".join([first, *lines[at + 1 : end]]).strip()
        if command.count("```") == 1:
            command = command.removesuffix("```").strip()  # the whole turn stands in a fence
    else:
        end = at + 1
        command = "" if not first and _ANY.match(opening) else opening.strip()
        lenient = lenient or not first
    bare = command if "\n" in command else _unquoted(command)
    return bare, lenient or bare != command, end


def _fenced(lines: list[str], at: int, marks: str, told: str) -> tuple[list[str], int]:
    """Content of the fenced block opened in line `at`, where `told` follows the marks, and the index of the line after it."""
    if marks in told:  # the whole block on one line
        return [told.split(marks)[0]], at + 1
    first = [] if re.fullmatch(r"[\w+#.-]*", told) else [told]  # a language, or the command itself
    close = next((i for i in range(at + 1, len(lines)) if lines[i].strip().startswith(marks)), None)
    if close is not None:
        return [*first, *lines[at + 1 : close]], close + 1
    end = next((i for i in range(at + 1, len(lines)) if _PLAIN.match(lines[i])), len(lines))  # never closed
    return [*first, *lines[at + 1 : end]], end


def _unquoted(command: str) -> str:
    """`command` without quotes or backticks around the whole of it, and without a fence that follows it."""
    command = command.strip()
    if command.endswith("```"):
        command = command.rstrip("`").rstrip()
    while len(command) > 1 and _QUOTES.get(command[0]) == command[-1]:
        inner = command.strip("`") if command[0] == "`" else command[1:-1]
        if command[0] in inner or command[-1] in inner:
            break
        command = inner.strip()
    return command


def _thought(lines: list[str]) -> str:
    """The text of these lines without the label it begins with."""
    first, _, rest = "\n".join(lines).strip().partition("\n")
    if match := _THOUGHT.match(first):
        first = first[match.end() :]
        if match["emphasis"]:
            first = first.lstrip("*_ \t")
    return f"{first}\n{rest}".strip()
