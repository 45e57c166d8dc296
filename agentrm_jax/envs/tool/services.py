"""The weather and movie tools over the services that AgentBoard asks: Open-Meteo and TMDB, with its parameters and its cuts of the answers.

Both are free of charge for such use within limits; mind their terms. TMDB wants a key: the environment variable TMDB_API_KEY holds its
API key (v3) or its read access token (v4).

Where this differs from AgentBoard: days that the weather archive does not hold (yet) are asked of the forecast, a search that finds
nothing has an empty result, and the air quality levels of 21, 41, 61 and 81 are those of 22, 42, 62 and 82.
"""

import functools
import math
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentrm_jax.envs.spec import Options
from agentrm_jax.envs.tool import weather
from agentrm_jax.envs.tool.calls import ToolError
from agentrm_jax.envs.tool.http import Client, Key, Reply, Request
from agentrm_jax.types import JSON, UserError

GENERATED, RECORDED = "generated", "recorded"
MODES = (GENERATED, "live", "record", RECORDED)
SERVED = ("weather", "movie")  # kinds of question
OPTIONS = ("service", "open_meteo_url", "tmdb_url", "timeout")
KEY_VARIABLE = "TMDB_API_KEY"
_WEATHER, _MOVIES = "open-meteo", "tmdb"
_TMDB = "https://api.themoviedb.org/3"
_HOSTS = {
    "/v1/archive": "https://archive-api.open-meteo.com",
    "/v1/forecast": "https://api.open-meteo.com",
    "/v1/elevation": "https://api.open-meteo.com",
    "/v1/search": "https://geocoding-api.open-meteo.com",
    "/v1/air-quality": "https://air-quality-api.open-meteo.com",
}
_DAILY = {
    "temp": "temperature_2m_max,temperature_2m_min,temperature_2m_mean",
    "rain": "rain_sum",
    "snow": "snowfall_sum",
}
_AIR = "european_aqi_pm2_5"
_CUT = ("elevation", "generationtime_ms", "timezone", "timezone_abbreviation", "utc_offset_seconds")
_SEARCH = {"include_adult": "false", "language": "en-US", "page": "1"}
_JOBS, _MOST = ("Director", "Producer", "Writer"), 10
_LANDS = ("NL", "CN", "US", "DE")  # whose translations are shown
# What AgentBoard leaves out of a result before it is compared with a sub-goal
_UNCOMPARED = ("overview", "biography", "vote_average", "genres", "revenue", "budget", "release_date")


class Services(NamedTuple):
    """Who answers, and base addresses in place of the services' own ('' for those)."""

    client: Client
    open_meteo_url: str = ""
    tmdb_url: str = ""

    def weather(self, path: str, **params: str) -> Any:
        return _good(self.weather_reply(path, **params), _WEATHER)

    def weather_reply(self, path: str, **params: str) -> Reply:
        return self.client.get(Request(_WEATHER, path, params), self.open_meteo_url or _HOSTS[path])

    def movies(self, path: str, **params: str) -> Any:
        return _good(self.client.get(Request(_MOVIES, path, params), self.tmdb_url or _TMDB), _MOVIES)


def mode(options: Options) -> str:
    """Option `service`. Raises UserError for an unknown one."""
    chosen = str(options.get("service") or GENERATED)
    if chosen not in MODES:
        raise UserError(f"tool_query: no service {chosen!r}; choose {', '.join(MODES)}")
    return chosen


def check(options: Options, kinds: Sequence[str]) -> None:
    """Raises UserError where the options of live or recorded services do not fit together, or the key of TMDB is missing."""
    chosen = mode(options)
    for name in ("open_meteo_url", "tmdb_url"):
        url = urllib.parse.urlsplit(str(options.get(name) or "http://localhost"))
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(f"tool_query: option {name} must look like http://127.0.0.1:8000, not {options[name]!r}")
    if chosen == GENERATED:
        return
    folder = str(options.get("cassette") or "")
    if chosen != "live" and not folder:
        raise UserError(f"tool_query: service {chosen} needs option cassette, the folder of recorded answers")
    if chosen != "live" and Path(folder).expanduser().is_file():
        raise UserError(f"tool_query: with service {chosen} option cassette is a folder, but {folder!r} is a file")
    if chosen == RECORDED and not Path(folder).expanduser().is_dir():
        raise UserError(f"tool_query: there is no folder {folder!r} of recorded answers; make it with service=record")
    if chosen != RECORDED and "movie" in kinds:
        _key()
    _timeout(options)


def services(options: Options, kinds: Sequence[str]) -> Services:
    """The services that the options name, the same for all engines of a process, so that nothing is asked twice."""
    check(options, kinds)
    chosen, folder = mode(options), str(options.get("cassette") or "")
    urls = str(options.get("open_meteo_url") or ""), str(options.get("tmdb_url") or "")
    return _services(chosen, folder, _timeout(options), chosen != RECORDED and "movie" in kinds, *urls)


@functools.lru_cache(maxsize=4)
def _services(chosen: str, folder: str, timeout: float, with_key: bool, open_meteo_url: str, tmdb_url: str) -> Services:
    place = Path(folder).expanduser() if folder and chosen != "live" else None
    return Services(Client(chosen, place, timeout, {_MOVIES: _key()} if with_key else {}), open_meteo_url, tmdb_url)


def _key() -> Key:
    value = os.environ.get(KEY_VARIABLE, "").strip()
    if not value:
        raise UserError(
            f"tool_query: the movie tools ask TMDB, which wants a key: set the environment variable {KEY_VARIABLE}, "
            "or play other kinds (option kinds=weather)"
        )
    if re.fullmatch("[0-9a-fA-F]{32}", value):
        return Key(KEY_VARIABLE, {"api_key": value}, {})
    return Key(KEY_VARIABLE, {}, {"Authorization": f"Bearer {value}"})


def _timeout(options: Options) -> float:
    value = options.get("timeout") or 10.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"tool_query: option timeout must be seconds above 0, not {value!r}")
    return float(value)


def answer(at: Services, tool: str, a: Mapping[str, Any], today: str | None) -> Any:
    """The result of a weather or movie tool; `today` is the user's.

    Raises:
      ToolError: the call is refused, by us or by the service, or nothing was recorded for it.
      ServiceFault: the service does not answer.
    """
    if tool in _MOVIE_TOOLS:
        return _MOVIE_TOOLS[tool](at, a)
    match tool:
        case "get_latitude_longitude":
            return _places(at, a["name"])
        case "get_elevation":
            return at.weather("/v1/elevation", latitude=str(a["latitude"]), longitude=str(a["longitude"]))
        case "get_distance":
            return geodesic(**a)
        case "get_air_quality_level":
            return weather.level(a["air_quality_index"])
    found = re.fullmatch(r"get_(historical|current)_(temp|rain|snow|air)(?:_quality_index)?|get_(\w+)_forecast", tool)
    if found is None:
        raise ToolError(f"The question says nothing that {tool} could tell.")
    when = {"historical": "past", "current": "now", None: "future"}[found[1]]
    kind = found[2] or found[3]
    days = weather.span(when, a, today)
    where = {"latitude": str(a["latitude"]), "longitude": str(a["longitude"])}
    asked = {**where, "start_date": days[0], "end_date": days[-1], "timezone": "GMT"}
    return _air(at, asked) if kind == "air" else _days(at, {**asked, "daily": _DAILY[kind]})


def compared(result: Any) -> Any:
    """What of a result AgentBoard compares with a sub-goal."""
    if isinstance(result, list):
        return [{k: v for k, v in r.items() if k not in _UNCOMPARED} if isinstance(r, dict) else r for r in result]
    if not isinstance(result, dict):
        return result
    daily = result.get("daily")
    if isinstance(daily, dict) and "temperature_2m_max" in daily:
        return {**result, "daily": {k: v for k, v in daily.items() if not k.startswith("temperature_2m_")}}
    return {k: v for k, v in result.items() if k not in _UNCOMPARED}


def _good(reply: Reply, service: str) -> Any:
    """The content of an answer. Raises ToolError if the service turned the request down."""
    body: JSON = reply.body
    if 200 <= reply.status < 300:
        return body
    said = body.get("reason") or body.get("status_message") if isinstance(body, dict) else body
    raise ToolError(f"The service {service} refuses this ({reply.status}): {said or 'no reason given'}")


# Weather


def _days(at: Services, asked: Mapping[str, str]) -> Any:
    archived = at.weather_reply("/v1/archive", **asked)
    if archived.status == 400 or (archived.status == 200 and _gaps(archived.body)):
        later = at.weather_reply("/v1/forecast", **asked)
        if later.status == 200 or archived.status == 400:
            archived = later
    return {k: v for k, v in _good(archived, _WEATHER).items() if k not in _CUT}


def _gaps(body: JSON) -> bool:
    return any(None in column for column in body.get("daily", {}).values())


def _air(at: Services, asked: Mapping[str, str]) -> Any:
    """The index at noon of every day."""
    found = at.weather("/v1/air-quality", **asked, hourly=_AIR)
    noon = slice(12, None, 24)
    hours = {"time": found["hourly"]["time"][noon], _AIR: found["hourly"][_AIR][noon]}
    place = {key: found[key] for key in ("latitude", "longitude")}
    return {**place, "daily_units": found["hourly_units"], "daily": hours}


def _places(at: Services, name: str) -> Any:
    found = at.weather("/v1/search", name=name, count="3", language="en", format="json")
    shown = ("name", "latitude", "longitude", "country_code")
    return {"results": [{k: place[k] for k in shown if k in place} for place in found.get("results", [])]}


def geodesic(latitude1: float, longitude1: float, latitude2: float, longitude2: float) -> float:
    """Kilometres on the WGS 84 ellipsoid by Vincenty's inverse formula; nearly opposite points, where it fails, as on a sphere."""
    equator, flattening = 6378.137, 1 / 298.257223563
    pole = equator * (1 - flattening)
    u1, u2 = (math.atan((1 - flattening) * math.tan(math.radians(x))) for x in (latitude1, latitude2))
    difference = math.radians(longitude2 - longitude1)
    change = difference
    for _ in range(200):
        s, c = math.sin(change), math.cos(change)
        sine = math.hypot(math.cos(u2) * s, math.cos(u1) * math.sin(u2) - math.sin(u1) * math.cos(u2) * c)
        if sine == 0:
            return 0.0
        cosine = math.sin(u1) * math.sin(u2) + math.cos(u1) * math.cos(u2) * c
        arc = math.atan2(sine, cosine)
        alpha = math.cos(u1) * math.cos(u2) * s / sine
        rest = 1 - alpha**2
        middle = cosine - 2 * math.sin(u1) * math.sin(u2) / rest if rest > 1e-15 else 0.0
        k = flattening / 16 * rest * (4 + flattening * (4 - 3 * rest))
        turn = arc + k * sine * (middle + k * cosine * (2 * middle**2 - 1))
        before, change = change, difference + (1 - k) * flattening * alpha * turn
        if abs(change - before) < 1e-12:
            break
    else:
        return weather.kilometres(latitude1, longitude1, latitude2, longitude2)
    u = rest * (equator**2 - pole**2) / pole**2
    a = 1 + u / 16384 * (4096 + u * (u * (320 - 175 * u) - 768))
    b = u / 1024 * (256 + u * (u * (74 - 47 * u) - 128))
    inner = cosine * (2 * middle**2 - 1) - b / 6 * middle * (4 * sine**2 - 3) * (4 * middle**2 - 3)
    return pole * a * (arc - b * sine * (middle + b / 4 * inner))


# Movies


def _number(value: str, what: str) -> str:
    if not re.fullmatch("[0-9]{1,15}", value):
        raise ToolError(f"{what} must be a number as a search gives it.")
    return value


def _film(at: Services, a: Mapping[str, Any], part: str = "") -> Any:
    return at.movies(f"/movie/{_number(a['movie_id'], 'movie_id')}{part}")


def _person(at: Services, a: Mapping[str, Any], part: str = "") -> Any:
    return at.movies(f"/person/{_number(a['person_id'], 'person_id')}{part}")


def _chosen(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: record.get(name) for name in names}


def _search(at: Services, what: str, name: str, *shown: str) -> Any:
    found = at.movies(f"/search/{what}", query=name, **_SEARCH)["results"]
    return [_chosen(found[0], *shown)] if found else []


def _crew(at: Services, a: Mapping[str, Any]) -> Any:
    """Directors, producers and writers, and others up to ten in all."""
    people = [_chosen(p, "id", "name", "job") for p in _film(at, a, "/credits")["crew"]]
    shown = [p for p in people if p["job"] in _JOBS]
    known = {p["id"] for p in shown}
    others = [p for p in people if p["id"] not in known]
    return {"crew": shown + others[: max(0, _MOST - len(shown))]}


def _translations(at: Services, a: Mapping[str, Any]) -> Any:
    found = _film(at, a, "/translations")
    shown = [t for t in found["translations"] if t["iso_3166_1"] in _LANDS]
    without = [{**t, "data": {k: v for k, v in t["data"].items() if k != "title"}} for t in shown]
    return {**found, "translations": without}


_DETAILS = ("title", "budget", "genres", "revenue", "vote_average", "release_date")
_LIFE = ("name", "biography", "birthday", "place_of_birth")
_ELSEWHERE = ("imdb_id", "facebook_id", "instagram_id", "twitter_id")


def _roles(people: Sequence[Mapping[str, Any]], *shown: str) -> list[dict[str, Any]]:
    return [_chosen(p, *shown) for p in people[:_MOST]]


_MOVIE_TOOLS: dict[str, Callable[[Services, Mapping[str, Any]], Any]] = {
    "get_search_movie": lambda at, a: _search(at, "movie", a["movie_name"], "id", "overview", "title"),
    "get_search_person": lambda at, a: _search(at, "person", a["person_name"], "id", "name"),
    "get_movie_details": lambda at, a: _chosen(_film(at, a), *_DETAILS),
    "get_movie_production_companies": lambda at, a: _chosen(_film(at, a), "production_companies"),
    "get_movie_production_countries": lambda at, a: _chosen(_film(at, a), "production_countries"),
    "get_movie_cast": lambda at, a: {"cast": _roles(_film(at, a, "/credits")["cast"], "id", "name", "character")},
    "get_movie_crew": _crew,
    "get_movie_keywords": lambda at, a: {"keywords": [k["name"] for k in _film(at, a, "/keywords")["keywords"]]},
    "get_movie_alternative_titles": lambda at, a: _film(at, a, "/alternative_titles"),
    "get_movie_translation": _translations,
    "get_person_details": lambda at, a: _chosen(_person(at, a), *_LIFE),
    "get_person_cast": lambda at, a: {
        "cast": _roles(_person(at, a, "/movie_credits")["cast"], "id", "title", "character")
    },
    "get_person_crew": lambda at, a: {"crew": _roles(_person(at, a, "/movie_credits")["crew"], "id", "title", "job")},
    "get_person_external_ids": lambda at, a: _chosen(_person(at, a, "/external_ids"), *_ELSEWHERE),
}
