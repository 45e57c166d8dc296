"""What a config may name as a policy or a reward model is told apart by how it is written."""

import pytest

from agentrm_jax import places
from agentrm_jax.places import Judge, Maker, Model, Pair, Server
from agentrm_jax.types import UserError

URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("runs/nano/sft", Model("runs/nano/sft")),
        ("smollm2", Model("smollm2")),
        ("/models/a:b/c.gguf", Model("/models/a:b/c.gguf")),
        (f"openai:gpt@{URL}", Server("gpt", URL)),
        (f"openai:org/name@v2@{URL}/", Server("org/name@v2", URL)),
        ("mine:make", Maker("mine", "make")),
        ("my.module:make_it", Maker("my.module", "make_it")),
        ("judge:smollm2", Judge(Model("smollm2"))),
        ("judge:runs/nano/sft", Judge(Model("runs/nano/sft"))),
        (f"judge:openai:gpt@{URL}", Judge(Server("gpt", URL))),
        ("implicit:runs/nano/sft@smollm2", Pair("runs/nano/sft", "smollm2")),
    ],
)
def test_a_place_is_read(text, place):
    assert places.read(text) == place


def test_a_folder_that_is_there_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine:make").mkdir()
    assert places.read("mine:make") == Model("mine:make")


@pytest.mark.parametrize(
    "text",
    [
        "openai:",
        "openai:gpt",
        f"openai:@{URL}",
        "openai:gpt@127.0.0.1:8000",
        "openai:gpt@ftp://x/v1",
        "openai:gpt@http://x:no/v1",
    ],
)
def test_half_a_server_is_refused_with_an_example(text):
    with pytest.raises(UserError, match=r"write openai:MODEL@URL .* such as openai:"):
        places.read(text)


@pytest.mark.parametrize(
    "url", ["http://me:secret@x/v1", "http://secret@x/v1", "http://x/v1?key=secret", "http://x/v1#secret"]
)
def test_a_key_in_the_url_is_refused_without_being_shown(url):
    with pytest.raises(UserError, match="key_variable") as caught:
        places.read(f"openai:gpt@{url}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["judge:", "judge:my.module:make", "judge:judge:smollm2"])
def test_a_judge_is_a_policy(text):
    with pytest.raises(UserError, match="write judge:PLACE"):
        places.read(text)


@pytest.mark.parametrize(
    "text", ["implicit:", "implicit:runs/nano/sft", "implicit:@smollm2", f"implicit:smollm2@openai:gpt@{URL}"]
)
def test_a_log_ratio_is_of_two_models_on_our_engine(text):
    with pytest.raises(UserError, match="write implicit:TUNED@BASE"):
        places.read(text)


class Mine:
    async def score(self, states):
        return [0.0] * len(states)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        return Maker(name, "make")

    return write


def test_a_function_of_a_users_module_makes_what_is_used(module):
    maker = module(
        "fine", "class Own:\n    async def score(self, states): ...\ndef make(specs, config): return Own()\n"
    )
    assert hasattr(maker.make("score", {}, {}), "score")


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("empty", "", "has no attribute 'make'"),
        ("broken", "1 / 0", "ZeroDivisionError"),
        ("leaves", "raise SystemExit(3)", "SystemExit"),
        ("value", "make = 3", "is a int, not a function"),
        ("other", "def make(specs, config): return 7", "made a int, which has no method score"),
        ("fails", "def make(specs, config):\n    return specs['x']", r"fails: KeyError: 'x' \(.*fails.py, line 2\)"),
        ("few", "def make(specs): ...", "fails: TypeError"),
    ],
)
def test_a_module_that_does_not_do_is_named_in_one_line(name, code, said, module):
    with pytest.raises(UserError, match=said) as caught:
        module(name, code).make("score", {}, {})
    assert f"{name}:make" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_looked_for_in_the_current_folder_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"nowhere:make cannot be imported: .*looked for in {tmp_path} too"):
        Maker("nowhere", "make").find()
