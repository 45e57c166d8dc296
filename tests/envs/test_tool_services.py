"""Questions over live and recorded services, against a small server of our own that speaks as Open-Meteo and TMDB document it."""

import asyncio
import datetime
import email.utils
import http.server
import json
import socket
import threading
import urllib.parse

import pytest

from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.tool import http as _tool_http
from agentrm_jax.envs.tool import query
from agentrm_jax.envs.tool import services as _tool_services
from agentrm_jax.envs.tool.calls import render_call
from agentrm_jax.envs.tool.http import ServiceFault
from agentrm_jax.types import Action, EnvironmentFault, UserError

OSLO = {"latitude": 59.91, "longitude": 10.75}
TODAY = "2023-06-15"
PAST = {**OSLO, "start_date": "2023-06-01", "end_date": "2023-06-03"}
LAST_ARCHIVED = "2023-06-20"
KEY = "0123456789abcdef" * 2


def days(first, last):
    start, end = datetime.date.fromisoformat(first), datetime.date.fromisoformat(last)
    return [(start + datetime.timedelta(days=i)).isoformat() for i in range((end - start).days + 1)]


def open_meteo(path, q):
    """(status, body) of the weather service: the value of a day is its number in the month."""
    if path == "/v1/search":
        place = {"id": 3143244, "name": "Oslo", **OSLO, "elevation": 26.0, "feature_code": "PPLC", "country_code": "NO"}
        place |= {"admin1_id": 6453366, "timezone": "Europe/Oslo", "population": 580000, "country": "Norway"}
        return 200, {"results": [place], "generationtime_ms": 0.5} if q["name"] == "Oslo" else {
            "generationtime_ms": 0.1
        }
    if path == "/v1/elevation":
        return 200, {"elevation": [26.0]}
    head = {"latitude": 59.9, "longitude": 10.8, "generationtime_ms": 0.1, "utc_offset_seconds": 0}
    head |= {"timezone": q["timezone"], "timezone_abbreviation": "GMT", "elevation": 26.0}
    listed = days(q["start_date"], q["end_date"])
    if path == "/v1/air-quality":
        hours = [f"{day}T{hour:02}:00" for day in listed for hour in range(24)]
        values = [int(h[8:10]) if h.endswith("12:00") else 99 for h in hours]
        units = {"time": "iso8601", q["hourly"]: "EAQI"}
        return 200, {**head, "hourly_units": units, "hourly": {"time": hours, q["hourly"]: values}}
    if q["end_date"] > {"/v1/archive": "2023-06-25", "/v1/forecast": "2023-07-01"}[path]:
        return 400, {"error": True, "reason": f"Parameter 'end_date' is out of allowed range of {path}"}
    known = listed if path == "/v1/forecast" else [day for day in listed if day <= LAST_ARCHIVED]
    columns = {name: [int(d[8:]) if d in known else None for d in listed] for name in q["daily"].split(",")}
    return 200, {**head, "daily_units": {"time": "iso8601"}, "daily": {"time": listed, **columns}}


CREW = [{"id": i, "name": f"P{i}", "job": job, "credit_id": "c"} for i, job in enumerate(["Editor", "Director"] * 2)]
CAST = [{"id": i, "name": f"A{i}", "title": f"T{i}", "character": f"C{i}", "order": i} for i in range(12)]
MOVIES = {
    "/search/movie": {"page": 1, "results": [{"id": 603, "title": "The M", "overview": "o", "popularity": 1.0}] * 2},
    "/search/person": {"page": 1, "results": []},
    "/movie/603": {"id": 603, "title": "The M", "budget": 63, "genres": [{"id": 28, "name": "Action"}], "revenue": 463}
    | {"vote_average": 8.2, "release_date": "1999-03-31", "production_companies": [{"name": "W"}], "runtime": 136}
    | {"production_countries": [{"iso_3166_1": "US", "name": "United States of America"}]},
    "/movie/603/credits": {"id": 603, "cast": CAST, "crew": CREW},
    "/movie/603/keywords": {"id": 603, "keywords": [{"id": 1, "name": "ship"}]},
    "/movie/603/alternative_titles": {"id": 603, "titles": [{"iso_3166_1": "FR", "title": "Le M", "type": ""}]},
    "/movie/603/translations": {
        "id": 603,
        "translations": [
            {"iso_3166_1": land, "data": {"title": "M", "overview": land}, "english_name": land}
            for land in ("NL", "FR")
        ],
    },
    "/person/6384": {"id": 6384, "name": "K", "biography": "b", "birthday": "1964-09-02", "place_of_birth": "Beirut"},
    "/person/6384/movie_credits": {"id": 6384, "cast": CAST, "crew": [{"id": 1, "title": "T", "job": "Producer"}]},
    "/person/6384/external_ids": {"id": 6384, "imdb_id": "nm0000206", "facebook_id": None, "instagram_id": "k"}
    | {"twitter_id": None, "tiktok_id": None},
}


def tmdb(path, q, headers):
    if q.get("api_key") != KEY and headers.get("Authorization") != "Bearer a.b.c":
        return 401, {"status_code": 7, "status_message": "Invalid API key: You must be granted a valid key."}
    if path not in MOVIES:
        return 404, {"success": False, "status_code": 34, "status_message": "The resource could not be found."}
    return 200, MOVIES[path]


class Server:
    """Both services. `trouble` holds what goes wrong with the next requests, one after another: kinds below, or a Retry-After."""

    def __init__(self):
        self.requests, self.trouble, self.free = [], [], threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler):
        url = urllib.parse.urlsplit(handler.path)
        q = dict(urllib.parse.parse_qsl(url.query))
        self.requests.append((url.path, q))
        extra = {}
        match self.trouble.pop(0) if self.trouble else "":
            case "hang":
                self.free.wait(20)
                return
            case "drop":
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            case "html":
                status, body = 200, b"<html>gateway</html>"
            case "broken":
                status, body = 500, b"oops"
            case "":
                path = url.path.removeprefix("/3")
                status, content = tmdb(path, q, handler.headers) if url.path != path else open_meteo(path, q)
                body = json.dumps(content).encode()
            case wait:
                status, extra = 429, {"Retry-After": wait}
                body = b'{"error": true, "reason": "Minutely API request limit exceeded."}'
        handler.send_response(status)
        for name, value in {**extra, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self):
        self.free.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TMDB_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _tool_services._services.cache_clear()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def pauses(monkeypatch):
    """How long the client would have waited, without waiting."""
    waited = []
    monkeypatch.setattr(_tool_http.time, "sleep", waited.append)
    return waited


@pytest.fixture
def data(tmp_path):
    """A data folder with one question of each kind."""
    (tmp_path / "tool").mkdir()
    config = {"current_date": TODAY, "current_location": "Oslo"}
    place = {"latitude": 59.9, "longitude": 10.8, "daily_units": {"time": "iso8601"}}
    seen = {**place, "daily": {"time": days("2023-06-01", "2023-06-03")}}  # as AgentBoard writes it down
    questions = {
        "weather": ("What was the highest temperature from the 1st to the 3rd?", [seen, 3], config),
        "movie": ("When was The M released?", [{"title": "The M"}, "1999-03-31"], None),
    }
    for kind, (goal, subgoals, init) in questions.items():
        row = {"id": 0, "goal": goal, "subgoals": subgoals, "additional_info": {"init_config": init}}
        (tmp_path / "tool" / f"{kind}.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.fixture
def options(server, data):
    base = {"data": str(data), "kinds": ["weather", "movie"], "timeout": 5}
    return {**base, "open_meteo_url": server.url, "tmdb_url": f"{server.url}/3", "service": "live"}


def started(options, kind="weather"):
    task = next(t for t in query.tasks("test", options) if t.args["kind"] == kind)
    env = query.SPEC.make(options)
    env.reset(task)
    return env


def ask(env, tool, /, **arguments):
    answer = env.step(render_call(tool, **arguments))
    return json.loads(answer.observation) if answer.valid else answer.observation


def test_a_weather_question_is_answered_live(options, server):
    env = started(options)
    assert env.step(render_call("get_user_current_date")).observation == TODAY
    assert ask(env, "get_latitude_longitude", name="Oslo") == {
        "results": [{"name": "Oslo", **OSLO, "country_code": "NO"}]
    }
    seen = env.step(render_call("get_historical_temp", **PAST))
    assert json.loads(seen.observation) == {
        "latitude": 59.9,
        "longitude": 10.8,
        "daily_units": {"time": "iso8601"},
        "daily": {"time": days("2023-06-01", "2023-06-03")}
        | {f"temperature_2m_{kind}": [1, 2, 3] for kind in ("max", "min", "mean")},
    }
    assert seen.progress == 0.5  # the sub-goal leaves the temperatures out
    assert env.step(render_call("finish", answer=3)).reward == 1
    asked = dict(server.requests)
    assert asked["/v1/search"] == {"name": "Oslo", "count": "3", "language": "en", "format": "json"}
    assert asked["/v1/archive"]["daily"] == "temperature_2m_max,temperature_2m_min,temperature_2m_mean"
    assert (asked["/v1/archive"]["timezone"], asked["/v1/archive"]["latitude"]) == ("GMT", "59.91")


def test_the_other_weather_tools(options):
    env = started(options)
    noon = ask(env, "get_historical_air_quality_index", **PAST)["daily"]
    assert noon == {"time": [f"2023-06-0{d}T12:00" for d in (1, 2, 3)], "european_aqi_pm2_5": [1, 2, 3]}
    today = {**OSLO, "current_date": TODAY}
    assert ask(env, "get_current_air_quality_index", **today)["daily"]["european_aqi_pm2_5"] == [15]
    assert ask(env, "get_current_rain", **today)["daily"] == {"time": [TODAY], "rain_sum": [15]}
    tomorrow = {**OSLO, "start_date": "2023-06-16", "end_date": "2023-06-16"}
    assert ask(env, "get_snow_forecast", **tomorrow)["daily"]["snowfall_sum"] == [16]
    assert ask(env, "get_elevation", **OSLO) == {"elevation": [26.0]}
    assert env.step(render_call("get_air_quality_level", air_quality_index=35)).observation == "fair"
    assert ask(env, "get_latitude_longitude", name="Nowhere") == {"results": []}
    assert "earlier than the current date" in ask(env, "get_historical_temp", **{**PAST, "end_date": TODAY})
    assert "later than the current date" in ask(env, "get_rain_forecast", **PAST)
    assert "At most 30 days" in ask(env, "get_historical_rain", **{**PAST, "start_date": "2023-01-01"})


def test_days_that_are_not_archived_yet_are_asked_of_the_forecast(options, server):
    env = started(options)
    span = {**OSLO, "start_date": "2023-06-19", "end_date": "2023-06-22"}
    assert ask(env, "get_rain_forecast", **span)["daily"]["rain_sum"] == [19, 20, 21, 22]
    assert [path for path, _ in server.requests] == ["/v1/archive", "/v1/forecast"]
    assert ask(env, "get_rain_forecast", **{**span, "end_date": "2023-06-26"})["daily"]["rain_sum"][-1] == 26
    assert ask(env, "get_rain_forecast", **{**span, "end_date": "2023-07-02"}) == (
        "ERROR | The service open-meteo refuses this (400): "
        "Parameter 'end_date' is out of allowed range of /v1/forecast"
    )


def test_distances_are_those_on_the_ellipsoid():
    """Flinders Peak to Buninyon, the worked example of Vincenty's formula: 54972.271 m; and a degree along the equator."""
    km = _tool_services.geodesic(-37.95103341666667, 144.42486788888888, -37.65282113888889, 143.92649552777777)
    assert km == pytest.approx(54.972271, abs=1e-6)
    assert _tool_services.geodesic(0, 0, 0, 1) == pytest.approx(111.3194908, abs=1e-6)
    assert _tool_services.geodesic(1, 2, 1, 2) == 0
    assert _tool_services.geodesic(0, 0, 0.1, 179.9) == pytest.approx(20_000, abs=30)


def test_a_movie_question_is_answered_live(options):
    env = started(options, "movie")
    assert ask(env, "get_search_movie", movie_name="the m") == [{"id": 603, "overview": "o", "title": "The M"}]
    details = env.step(render_call("get_movie_details", movie_id=603))
    assert set(json.loads(details.observation)) == {
        "title",
        "budget",
        "genres",
        "revenue",
        "vote_average",
        "release_date",
    }
    assert details.progress == 0.5
    assert env.step(render_call("finish", answer="1999-03-31")).reward == 1


def test_the_other_movie_tools(options):
    env = started(options, "movie")
    film, person = {"movie_id": "603"}, {"person_id": "6384"}
    assert ask(env, "get_search_person", person_name="nobody") == []
    assert ask(env, "get_movie_cast", **film)["cast"] == [
        {"id": i, "name": f"A{i}", "character": f"C{i}"} for i in range(10)
    ]
    crew = ask(env, "get_movie_crew", **film)["crew"]
    assert [p["job"] for p in crew] == ["Director", "Director", "Editor", "Editor"]
    assert ask(env, "get_movie_keywords", **film) == {"keywords": ["ship"]}
    assert ask(env, "get_movie_alternative_titles", **film)["titles"][0]["title"] == "Le M"
    (only,) = ask(env, "get_movie_translation", **film)["translations"]
    assert (only["iso_3166_1"], only["data"]) == ("NL", {"overview": "NL"})
    assert ask(env, "get_movie_production_companies", **film) == {"production_companies": [{"name": "W"}]}
    assert ask(env, "get_movie_production_countries", **film)["production_countries"][0]["iso_3166_1"] == "US"
    assert ask(env, "get_person_details", **person)["place_of_birth"] == "Beirut"
    assert len(ask(env, "get_person_cast", **person)["cast"]) == 10
    assert ask(env, "get_person_crew", **person) == {"crew": [{"id": 1, "title": "T", "job": "Producer"}]}
    assert ask(env, "get_person_external_ids", **person)["imdb_id"] == "nm0000206"
    for tool in query.TOOLS["movie"]:
        assert tool in ("finish", "check_valid_actions") or tool in _tool_services._MOVIE_TOOLS


def test_what_a_service_refuses_is_read_by_the_agent(options, server):
    env = started(options, "movie")
    assert ask(env, "get_movie_details", movie_id="1") == (
        "ERROR | The service tmdb refuses this (404): The resource could not be found."
    )
    before = len(server.requests)
    for escape in ("..", "603/credits", "603?x=1"):
        assert "movie_id must be a number" in ask(env, "get_movie_details", movie_id=escape)
    assert len(server.requests) == before


def test_both_kinds_of_key_are_accepted(options, server, monkeypatch):
    assert ask(started(options, "movie"), "get_movie_keywords", movie_id=603)["keywords"] == ["ship"]
    assert server.requests[-1][1] == {"api_key": KEY}
    monkeypatch.setenv("TMDB_API_KEY", "a.b.c")
    _tool_services._services.cache_clear()
    assert ask(started(options, "movie"), "get_movie_keywords", movie_id=603)["keywords"] == ["ship"]
    assert server.requests[-1][1] == {}


def test_a_missing_or_wrong_key_ends_in_one_line(options, monkeypatch):
    monkeypatch.setenv("TMDB_API_KEY", "secret.of.somebody")
    with pytest.raises(UserError, match=r"does not accept the key in TMDB_API_KEY \(status 401\)") as e:
        ask(started(options, "movie"), "get_movie_details", movie_id=603)
    assert "secret" not in str(e.value)
    monkeypatch.delenv("TMDB_API_KEY")
    for enter in (lambda: query.tasks("test", options), lambda: query.SPEC.make(options)):
        with pytest.raises(UserError, match="set the environment variable TMDB_API_KEY") as e:
            enter()
        assert "\n" not in str(e.value)
    assert query.tasks("test", {**options, "kinds": "weather"})  # which needs none


# Trouble


def test_a_busy_service_is_asked_again_when_it_says(options, server, pauses):
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=300)
    server.trouble = ["2", email.utils.format_datetime(later, usegmt=True), "soon"]
    assert ask(started({**options, "timeout": 1000}), "get_elevation", **OSLO) == {"elevation": [26.0]}
    assert len(server.requests) == 4
    two, date, unreadable = pauses
    assert (two, unreadable) == (2, 2.0)  # the third pause of our own: 0.5, 1, 2
    assert 0 < date <= 300


@pytest.mark.parametrize("kind", ["broken", "drop"])
def test_passing_trouble_is_not_seen(kind, options, server, pauses):
    server.trouble = [kind, kind]
    assert ask(started(options), "get_elevation", **OSLO) == {"elevation": [26.0]}
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    ("trouble", "timeout", "says"),
    [
        (["3600"], 5, "answers 429, and wants to be asked again in 3600 s"),
        (["broken"] * 9, 5, "answers 500"),
        (["hang"] * 9, 0.2, "gives no answer .*[Tt]ime"),
        (["html"], 5, "which is not JSON"),
    ],
)
def test_a_service_that_does_not_answer_is_a_fault(trouble, timeout, says, options, server, monkeypatch):
    monkeypatch.setattr(_tool_http, "_PAUSE", 10.0)  # more than there is time for
    server.trouble = trouble
    with pytest.raises(ServiceFault, match=says):
        ask(started({**options, "timeout": timeout}), "get_elevation", **OSLO)


def test_through_the_pool_a_fault_is_retried_and_costs_the_step_alone(options, server):
    async def go():
        async with EnvironmentPool({"tool_query": options}, workers=1) as pool:
            state = await pool.reset(next(iter(query.tasks("test", options))))
            server.trouble = ["3600"]  # later than it is waited for
            up = await pool.step(state, Action("Action: " + render_call("get_elevation", **OSLO)))
            assert (pool.stats.faults, up.outcome.observation) == (1, 'Observation: {"elevation": [26.0]}')
            server.trouble = ["html"] * 9
            with pytest.raises(EnvironmentFault, match="ServiceFault"):
                await pool.step(state, Action("Action: " + render_call("get_latitude_longitude", name="Oslo")))
            server.trouble.clear()
            found = await pool.step(up, Action("Action: " + render_call("get_historical_temp", **PAST)))
            return found.outcome.progress

    assert asyncio.run(go()) == 0.5


# Recordings


def calls():
    yield "weather", "get_latitude_longitude", {"name": "Oslo"}
    yield "weather", "get_historical_temp", PAST
    yield "weather", "get_historical_air_quality_index", PAST
    yield "movie", "get_search_movie", {"movie_name": "Ä & B"}
    yield "movie", "get_movie_details", {"movie_id": "603"}
    yield "movie", "get_movie_details", {"movie_id": "1"}  # refused: an answer, too


def test_what_was_recorded_is_answered_without_network_or_key(options, server, tmp_path, monkeypatch):
    folder = tmp_path / "cassette"
    options |= {"service": "record", "cassette": str(folder)}
    first = [ask(started(options, kind), tool, **a) for kind, tool, a in calls()]
    asked = len(server.requests)
    assert asked == 6
    _tool_services._services.cache_clear()  # as in another run
    assert [ask(started(options, kind), tool, **a) for kind, tool, a in calls()] == first
    assert len(server.requests) == asked
    files = sorted(folder.rglob("*"))
    assert len([f for f in files if f.suffix == ".json"]) == 6
    assert not any(KEY in f.read_text() or server.url in f.read_text() for f in files if f.is_file())

    monkeypatch.delenv("TMDB_API_KEY")
    monkeypatch.setattr(_tool_http, "_once", None)
    recorded = {"data": options["data"], "kinds": options["kinds"], "service": "recorded", "cassette": str(folder)}
    assert [ask(started(recorded, kind), tool, **a) for kind, tool, a in calls()] == first
    missing = ask(started(recorded), "get_elevation", **OSLO)
    assert missing == ("ERROR | No answer was recorded for open-meteo /v1/elevation?latitude=59.91&longitude=10.75.")


def test_trouble_is_not_recorded(options, server, tmp_path):
    options |= {"service": "record", "cassette": str(tmp_path / "cassette")}
    server.trouble = ["html"]
    env = started(options)
    with pytest.raises(ServiceFault):
        ask(env, "get_elevation", **OSLO)
    assert ask(env, "get_elevation", **OSLO) == {"elevation": [26.0]}


def test_a_recording_that_cannot_be_read_is_named(options, tmp_path):
    options |= {"service": "record", "cassette": str(tmp_path / "cassette")}
    ask(started(options), "get_elevation", **OSLO)
    (file,) = (tmp_path / "cassette").rglob("*.json")
    file.write_text("{")
    _tool_services._services.cache_clear()
    with pytest.raises(UserError, match=rf"recording .*{file.name} cannot be read .*record it again"):
        ask(started({**options, "service": "recorded"}), "get_elevation", **OSLO)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"service": "alive"}, "no service 'alive'; choose generated, live, record, recorded"),
        ({"service": "record"}, "needs option cassette"),
        ({"service": "record", "cassette": __file__}, "cassette is a folder, but .* is a file"),
        ({"service": "recorded", "cassette": "/nowhere"}, "there is no folder '/nowhere'"),
        ({"data": ""}, "option `service` needs `data` too"),
        ({"kinds": ""}, "there is no service for academia.*kinds to weather,movie"),
        ({"tmdb_url": "file:///etc/passwd"}, "tmdb_url must look like http"),
        ({"timeout": -1}, "timeout must be seconds above 0"),
    ],
)
def test_options_that_do_not_fit_end_in_one_line(change, says, options):
    with pytest.raises(UserError, match=says) as e:
        query.tasks("test", {**options, **change})
    assert "\n" not in str(e.value)


def test_training_questions_stay_generated(options):
    assert query.tasks("train", options) == query.tasks("train", {"kinds": options["kinds"]})
