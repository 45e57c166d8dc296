import json
import pickle
import re
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

from agentrm_jax.envs.tool import academia, movie, query, weather
from agentrm_jax.envs.tool.calls import render_call
from agentrm_jax.envs.tool.question import progress
from agentrm_jax.testing.shared import needs_shared, shared_data
from agentrm_jax.types import Outcome, Task, UserError

DATA = shared_data()
official = needs_shared("tool/weather.jsonl")
OSLO = {"latitude": 59.91, "longitude": 10.75}


def task(kind, seed=0, split="train"):
    return Task("tool_query", "t", split, 30, {"kind": kind, "seed": seed, "data_split": split})


def started(kind, seed=0):
    env = query.SPEC.make({})
    env.reset(task(kind, seed))
    return env


def answers(env, tool, /, **arguments):
    answer = env.step(render_call(tool, **arguments))
    assert answer.valid, answer.observation
    return json.loads(answer.observation)


@pytest.mark.parametrize("kind", query.TOOLS)
def test_experts_find_every_sub_goal_and_the_answer(kind):
    env = query.SPEC.make({})
    for t in query.tasks("train", {"kinds": [kind], "count": 150}):
        env.reset(t)
        steps = [env.step(command) for _, command in query.expert(env, t)]
        n = len(env.question.needed)
        assert all(s.valid for s in steps), t.id
        assert steps[-2].progress == pytest.approx(n / (n + 1)), t.id
        assert steps[-2].reward == 0
        assert (steps[-1].reward, steps[-1].progress, steps[-1].over) == (1, 1, True), t.id
        assert len(steps) <= t.max_steps


def test_progress_is_the_share_of_sub_goals_and_a_right_answer_makes_up_for_all():
    needed = frozenset("abc")
    assert progress(needed, "", False) == 0
    assert progress(needed, "abx", False) == 0.5
    assert progress(needed, "abc", False) == 0.75
    assert progress(needed, "", True) == 1


def test_a_wrong_answer_ends_the_episode_without_reward():
    env = started("movie", 7)
    answer = env.step(render_call("finish", answer="nobody"))
    assert (answer.reward, answer.progress, answer.over) == (0, 0, True)


def test_facts_count_whichever_route_shows_them():
    """A forecast asked day by day reveals what one call over the span does."""
    for seed in range(200):
        env = started("weather", seed)
        plan = [c for _, c in query.expert(env, task("weather", seed))]
        if "_forecast" in plan[-2]:
            break
    *first, series, _ = plan
    name, arguments = series.split(" with Action Input: ")
    arguments = json.loads(arguments)
    for command in first:
        env.step(command)
    days = weather._days(arguments["start_date"], arguments["end_date"])
    for day in days:
        last = env.step(render_call(name, **{**arguments, "start_date": day, "end_date": day}))
    n = len(env.question.needed)
    assert last.progress == pytest.approx(n / (n + 1))


def test_the_weather_stays_the_same_and_fits_the_place():
    assert weather.weather("s", "Oslo", "2024-01-15") == weather.weather("s", "Oslo", "2024-01-15")
    means = {
        (city, month): sum(weather.weather("s", city, f"2024-{month:02}-{d:02}").mean for d in range(1, 29)) / 28
        for city in ("Oslo", "Santiago", "Miami")
        for month in (1, 7)
    }
    assert means["Oslo", 1] < 0 < 10 < means["Oslo", 7]
    assert means["Santiago", 7] < means["Santiago", 1]
    for day in range(1, 29):
        today = weather.weather("s", "Oslo", f"2024-02-{day:02}")
        assert today.low < today.mean < today.high
        assert min(today.rain, today.snow) == 0 <= max(today.rain, today.snow)


def test_weather_answers_have_the_services_shape():
    env = started("weather")
    place = answers(env, "get_latitude_longitude", name="oslo, Norway")["results"][0]
    assert place == {"name": "Oslo", **OSLO, "country_code": "NO"}
    day = env.question.world.date
    today = answers(env, "get_current_temp", **OSLO, current_date=day)
    assert today["daily"]["time"] == [day]
    assert set(today["daily"]) == {"time", "temperature_2m_max", "temperature_2m_min", "temperature_2m_mean"}
    assert answers(env, "get_elevation", **OSLO) == {"elevation": [23.0]}
    far = {"latitude1": 59.91, "longitude1": 10.75, "latitude2": 48.21, "longitude2": 16.37}
    assert answers(env, "get_distance", **far) == pytest.approx(1353, abs=5)
    assert env.step('get_air_quality_level with Action Input: {"air_quality_index": "35"}').observation == "fair"


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        (
            "get_historical_temp",
            {"start_date": "2030-01-01", "end_date": "2030-01-02"},
            "earlier than the current date",
        ),
        ("get_rain_forecast", {"start_date": "2020-01-01", "end_date": "2020-01-02"}, "later than the current date"),
        ("get_historical_snow", {"start_date": "2020-01-01", "end_date": "2020-03-01"}, "At most 30 days"),
        ("get_historical_snow", {"start_date": "January", "end_date": "2020-03-01"}, "YYYY-MM-DD"),
    ],
)
def test_weather_dates_are_checked(name, arguments, says):
    env = started("weather")
    before = env.snapshot()
    answer = env.step(render_call(name, **OSLO, **arguments))
    assert not answer.valid
    assert answer.observation.startswith("ERROR | ")
    assert says in answer.observation
    assert env.snapshot() == before


def test_movie_credits_agree_with_each_other():
    env = started("movie")
    db = env.question.world
    for film in list(db.films.values())[:20]:
        found = answers(env, "get_search_movie", movie_name=film.title.upper())
        assert [f["id"] for f in found] == [film.id]
        for member in answers(env, "get_movie_cast", movie_id=film.id)["cast"]:
            roles = answers(env, "get_person_cast", person_id=member["id"])["cast"]
            listed = {"id": film.id, "title": film.title, "character": member["character"]} in roles
            assert listed or len(roles) == 10
    assert answers(env, "get_search_movie", movie_name="no such film") == []
    assert not env.step(render_call("get_movie_details", movie_id="1")).valid


def test_academia_networks_have_to_be_loaded_first():
    env = started("academia")
    net = env.question.world.network
    author = next(iter(net.organisation))
    check = render_call("authorNodeCheck", node=author)
    assert "Load AuthorNet first" in env.step(check).observation
    env.step("loadAuthorNet with Action Input: {}")
    assert answers(env, "authorNodeCheck", node=author)["org"] == net.organisation[author]
    for friend in answers(env, "neighbourCheck", graph="AuthorNet", node=author):
        edge = answers(env, "authorEdgeCheck", node1=author, node2=friend)
        assert edge["weight"] == len(edge["collaborative_papers"]) > 0
    assert "Load PaperNet first" in env.step(render_call("paperNodeCheck", node=next(iter(net.papers)))).observation


def test_citations_are_counted_in_the_network():
    net = academia.network("train")
    assert sum(len(p.cites) for p in net.papers.values()) == sum(map(len, net.cited_by.values())) > 0
    assert all(net.papers[c].year <= p.year for p in net.papers.values() for c in p.cites)


@pytest.mark.parametrize("kind", query.TOOLS)
@pytest.mark.parametrize(
    "command",
    ["", "search", "paint with Action Input: {}", "finish with Action Input: {}", "finish with Action Input: [1"],
)
def test_refused_calls_change_nothing(kind, command):
    env = started(kind)
    before = env.snapshot()
    answer = env.step(command)
    assert (answer.valid, answer.over) == (False, False)
    assert env.snapshot() == before


def test_check_valid_actions_names_the_tools():
    for kind, tools in query.TOOLS.items():
        assert started(kind).step("check_valid_actions").observation == f"Tools: {', '.join(tools)}."


def test_states_can_be_gone_back_to_any_number_of_times():
    for kind in query.TOOLS:
        env = started(kind, 5)
        start = env.snapshot()
        first = [env.step(command) for _, command in query.expert(env, task(kind, 5))]
        for _ in range(2):
            env.restore(start)
            assert [env.step(command) for _, command in query.expert(env, task(kind, 5))] == first


def test_splits_share_no_question_and_no_data():
    asked = {}
    for split in ("train", "dev", "test"):
        tasks = query.tasks(split, {})
        assert len({t.id for t in tasks}) == len(tasks) == {"train": 450}.get(split, 60)
        made = [query._generated(t.args["kind"], t.args["seed"], split) for t in tasks]
        asked[split] = {(q.goal, str(q.answer), q.needed) for q in made}
        assert len(asked[split]) == len(tasks)
    assert not asked["train"] & asked["dev"]
    assert not asked["train"] & asked["test"]
    assert not asked["dev"] & asked["test"]
    assert movie.database("train") != movie.database("test")
    assert academia.network("train") != academia.network("test")


def test_a_cassette_answers_official_questions(tmp_path):
    folder = tmp_path / "tool"
    folder.mkdir()
    row = {
        "id": 0,
        "goal": "How high is Oslo?",
        "subgoals": [{"elevation": [9.0]}, 9.0],
        "additional_info": {"init_config": {"current_date": "2023-06-15", "current_location": "Oslo"}},
    }
    (folder / "weather.jsonl").write_text(json.dumps(row))
    cassette = tmp_path / "cassette.json"
    cassette.write_text(json.dumps([{"tool": "get_elevation", "args": OSLO, "result": {"elevation": [9.0]}}]))
    options = {"data": str(tmp_path), "cassette": str(cassette), "kinds": ["weather"]}
    (t,) = query.tasks("test", options)
    env = query.SPEC.make(options)
    assert env.reset(t).goal == "How high is Oslo?"
    assert env.step("get_user_current_date with Action Input: {}").observation == "2023-06-15"
    assert "No answer was recorded" in env.step(render_call("get_elevation", latitude=1, longitude=2)).observation
    assert env.step(render_call("get_elevation", **OSLO)).progress == 0.5
    assert env.step(render_call("finish", answer="9")).reward == 1


@pytest.mark.parametrize(
    "options",
    [{"kinds": ["sports"]}, {"cassette": "c.json"}, {"cassette": "c.json", "data": "/nowhere"}, {"data": "/nowhere"}],
)
def test_wrong_options_end_in_one_line(options):
    with pytest.raises(UserError) as e:
        query.tasks("test", options)
    assert "\n" not in str(e.value)


def test_official_questions_without_recorded_answers_are_not_replaced_by_others_in_silence():
    with pytest.raises(UserError, match=r"need recorded answers.*`cassette`"):
        query.tasks("test", {"data": "anywhere"})
    assert query.tasks("train", {"data": "anywhere"}) == query.tasks("train", {})
    assert query.tasks("test", {"data": ""}) == query.tasks("test", {})


def graph_pickle(nodes, edges):
    """The pickle of a networkx graph, made without networkx."""
    made = types.ModuleType("networkx")
    kind, view = (type(name, (), {"__module__": "networkx"}) for name in ("Graph", "NodeView"))
    vars(made).update(Graph=kind, NodeView=view)
    neighbours = {n: {} for n in nodes}
    for (one, two), attributes in edges.items():
        neighbours[one][two] = neighbours[two][one] = attributes
    graph = kind()
    vars(graph).update(graph={}, _node=nodes, _adj=neighbours, nodes=view())
    with mock.patch.dict(sys.modules, {"networkx": made}):
        return pickle.dumps(graph)


@pytest.fixture
def networks(tmp_path):
    """AgentBoard's layout with a made-up network of two papers by two authors, and a question about it."""
    folder = tmp_path / "agentboard/tool-query/academia/raw"
    folder.mkdir(parents=True)
    (tmp_path / "tool").mkdir()
    papers = graph_pickle(
        {7: {"title": "Trees", "year": 2020}, 8: {"title": "Leaves", "year": 2021}}, {(7, 8): {"weight": 1}}
    )
    authors = graph_pickle(
        {1: {"name": "Ada", "org": "Lab"}, 2: {"name": "Bo", "org": "Lab"}},
        {(1, 2): {"weight": 1, "collaborative_papers": [8]}},
    )
    tables = {"title2id_dict": {"Trees": 7, "Leaves": 8}, "author2id_dict": {"Ada": 1, "Bo": 2}}
    tables |= {"id2title_dict": {7: "Trees", 8: "Leaves"}, "id2author_dict": {1: "Ada", 2: "Bo"}}
    for name, content in {"paper_net": papers, "author_net": authors}.items():
        (folder / f"{name}.pkl").write_bytes(content)
    for name, table in tables.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(table))
    info = {"init_config": None}
    row = {"id": 0, "goal": "With whom did Ada write?", "subgoals": [["Bo"], "Bo"], "additional_info": info}
    (tmp_path / "tool/academia.jsonl").write_text(json.dumps(row))
    return tmp_path


def test_agentboards_networks_answer_official_questions(networks):
    options = {"data": str(networks), "kinds": "academia"}
    (task,) = query.tasks("test", options)
    env = query.SPEC.make(options)
    env.reset(task)

    def ask(name, **arguments):
        return env.step(render_call(name, **arguments))

    ada = {"graph": "AuthorNet", "node": "Ada"}
    assert ask("neighbourCheck", **ada).observation == "ERROR | Please load the AuthorNet first."
    assert ask("loadAuthorNet").observation == "AuthorNet is loaded."
    state = env.snapshot()
    assert json.loads(ask("authorEdgeCheck", node1="Ada", node2="Bo").observation)["collaborative_papers"] == ["Leaves"]
    assert "Please load the PaperNet" in ask("paperNodeCheck", node="Trees").observation
    ask("loadPaperNet")
    assert json.loads(ask("paperNodeCheck", node="Trees").observation) == {"title": "Trees", "year": 2020}
    assert json.loads(ask("paperEdgeCheck", node1="Trees", node2="Leaves").observation) == {"weight": 1}
    assert "no node named Roots" in ask("paperNodeCheck", node="Roots").observation
    env.restore(state)
    assert "Please load the PaperNet" in ask("paperNodeCheck", node="Trees").observation
    found = ask("neighbourCheck", **ada)
    assert (json.loads(found.observation), found.progress) == (["Bo"], 0.5)
    assert ask("finish", answer="Bo").reward == 1


def test_official_questions_of_other_kinds_still_need_a_recording(networks):
    with pytest.raises(UserError, match=r"official questions of weather, movie in `data` need recorded answers"):
        query.tasks("test", {"data": str(networks)})


def test_a_pickle_with_anything_but_a_graph_is_refused(networks):
    place = networks / "agentboard/tool-query/academia/raw/paper_net.pkl"
    place.write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(UserError, match=r"paper_net\.pkl cannot be read: it holds a pathlib"):
        query.SPEC.make({"data": str(networks), "kinds": ["academia"]})


def test_a_cassette_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cassette .*missing\.json"):
        query.SPEC.make({"cassette": str(tmp_path / "missing.json")})


def test_the_example_is_a_solved_episode():
    messages = query.SPEC.example
    assert [m.role for m in messages[:3]] == ["user", "assistant", "user"]
    turns = [m.content for m in messages if m.role == "assistant"]
    assert all(re.fullmatch(r"Thought: .+\nAction: \w+ with Action Input: \{.*\}", t) for t in turns)


@official
def test_official_questions_are_all_there(tmp_path):
    cassette = tmp_path / "empty.json"
    cassette.write_text("[]")
    options = {"data": str(DATA), "cassette": str(cassette)}
    tasks = query.tasks("test", options)
    env = query.SPEC.make(options)
    assert [sum(t.args["kind"] == k for t in tasks) for k in query.TOOLS] == [343, 238, 20]
    for t in tasks[::10]:
        env.reset(t)
        *_, last = (env.step(command) for _, command in query.expert(env, t))
        assert last.reward == 1


def test_the_answer_is_what_votes_are_counted_by():
    def said(parsed, **more):
        return query.SPEC.answer(Outcome("", done=True, parsed=parsed, **more))

    assert said('finish with Action Input: {"answer": "Oslo"}') == said('finish with Action Input: {"answer":"OSLO"}')
    assert said('finish with Action Input: {"answer": "Oslo"}') != said('finish with Action Input: {"answer": "Rome"}')
    assert said(None) is None
    assert said('finish with Action Input: {"answer": "Oslo"}', valid=False) is None
    assert said('get_movie with Action Input: {"answer": "Oslo"}') is None
