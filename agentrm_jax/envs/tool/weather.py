"""Weather archive, forecast and geography from a seeded climate model, and questions about them.

Cities, coordinates and elevations are real (rounded); the weather is invented: a yearly wave by latitude and height plus
noise decided by seed, city and day. Tools, arguments and the shape of answers are those of AgentBoard's weather tools over
Open-Meteo, errors included (dates on the wrong side of today, spans over 30 days).
"""

import datetime
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from agentrm_jax.envs.tool.calls import CHECK, FINISH, Tool, ToolError
from agentrm_jax.envs.tool.question import Action, Answered, Question, ask, looked_up


class City(NamedTuple):
    name: str
    latitude: float
    longitude: float
    elevation: float  # metres
    country: str


CITIES = {
    city.name: city
    for city in (
        City(*row)
        for row in [
            ("Oslo", 59.91, 10.75, 23.0, "NO"),
            ("Lisbon", 38.72, -9.14, 45.0, "PT"),
            ("Vienna", 48.21, 16.37, 171.0, "AT"),
            ("Warsaw", 52.23, 21.01, 113.0, "PL"),
            ("Athens", 37.98, 23.73, 70.0, "GR"),
            ("Dublin", 53.33, -6.25, 17.0, "IE"),
            ("Zurich", 47.37, 8.55, 408.0, "CH"),
            ("Madrid", 40.42, -3.7, 657.0, "ES"),
            ("Reykjavik", 64.14, -21.9, 37.0, "IS"),
            ("Helsinki", 60.17, 24.94, 26.0, "FI"),
            ("Cairo", 30.06, 31.25, 23.0, "EG"),
            ("Nairobi", -1.28, 36.82, 1795.0, "KE"),
            ("Cape Town", -33.93, 18.42, 25.0, "ZA"),
            ("Lagos", 6.45, 3.39, 11.0, "NG"),
            ("Addis Ababa", 9.02, 38.75, 2355.0, "ET"),
            ("Tokyo", 35.69, 139.69, 44.0, "JP"),
            ("Sapporo", 43.06, 141.35, 29.0, "JP"),
            ("Seoul", 37.57, 126.98, 38.0, "KR"),
            ("Hanoi", 21.02, 105.84, 16.0, "VN"),
            ("Delhi", 28.65, 77.23, 227.0, "IN"),
            ("Kathmandu", 27.7, 85.32, 1317.0, "NP"),
            ("Ulaanbaatar", 47.91, 106.88, 1299.0, "MN"),
            ("Almaty", 43.25, 76.93, 787.0, "KZ"),
            ("Sydney", -33.87, 151.21, 58.0, "AU"),
            ("Auckland", -36.85, 174.76, 26.0, "NZ"),
            ("Toronto", 43.7, -79.42, 175.0, "CA"),
            ("Denver", 39.74, -104.98, 1609.0, "US"),
            ("Chicago", 41.85, -87.65, 179.0, "US"),
            ("Boston", 42.36, -71.06, 14.0, "US"),
            ("Miami", 25.77, -80.19, 25.0, "US"),
            ("Anchorage", 61.22, -149.9, 38.0, "US"),
            ("Mexico City", 19.43, -99.13, 2240.0, "MX"),
            ("Bogota", 4.61, -74.08, 2582.0, "CO"),
            ("Quito", -0.23, -78.52, 2854.0, "EC"),
            ("Lima", -12.04, -77.03, 154.0, "PE"),
            ("La Paz", -16.5, -68.15, 3782.0, "BO"),
            ("Santiago", -33.46, -70.65, 556.0, "CL"),
        ]
    )
}
_FOLDED = {name.casefold(): name for name in CITIES}


class World(NamedTuple):
    """Which weather, and what the user calls today and here."""

    seed: str
    date: str
    location: str


class Day(NamedTuple):
    high: float  # degrees Celsius
    low: float
    mean: float
    rain: float  # millimetres
    snow: float  # centimetres
    aqi: int


@functools.lru_cache(maxsize=20_000)
def weather(seed: str, name: str, day: str) -> Day:
    """The weather of one day at one city."""
    city, date, random = CITIES[name], datetime.date.fromisoformat(day), Random(f"{seed}/{name}/{day}")
    phase = 2 * math.pi * (date.timetuple().tm_yday - 200) / 365.25
    wave = math.cos(phase) * (1 if city.latitude >= 0 else -1) * 14 * min(1.0, abs(city.latitude) / 45)
    mean = 27 - 0.0062 * city.latitude**2 + wave * 0.8 - 0.0055 * city.elevation + random.gauss(0, 2.5)
    spread = random.uniform(3, 7)
    amount = random.expovariate(1 / 6) if random.random() < 0.4 else 0.0
    frozen = mean < 1
    return Day(
        round(mean + spread, 1),
        round(mean - spread, 1),
        round(mean, 1),
        0.0 if frozen else round(amount, 1),
        round(amount * 0.7, 2) if frozen else 0.0,
        random.randint(8, 95),
    )


def _near(latitude: float, longitude: float) -> City:
    """The known city within 50 km of a point."""
    for city in CITIES.values():
        if abs(city.latitude - latitude) < 1 and kilometres(city.latitude, city.longitude, latitude, longitude) < 50:
            return city
    raise ToolError(f"There is no weather station near {latitude}, {longitude}.")


def kilometres(latitude1: float, longitude1: float, latitude2: float, longitude2: float) -> float:
    """Great-circle distance."""
    a, b = math.radians(latitude1), math.radians(latitude2)
    half = (
        math.sin((b - a) / 2) ** 2
        + math.cos(a) * math.cos(b) * math.sin(math.radians(longitude2 - longitude1) / 2) ** 2
    )
    return 2 * 6371.0 * math.asin(math.sqrt(min(1.0, half)))


def _days(start: str, end: str) -> list[str]:
    try:
        first, last = datetime.date.fromisoformat(start), datetime.date.fromisoformat(end)
    except ValueError:
        raise ToolError("Dates are written as YYYY-MM-DD.") from None
    if last < first:
        raise ToolError("end_date should not be earlier than start_date.")
    if (last - first).days > 30:
        raise ToolError("At most 30 days lie between start_date and end_date; ask several times for more.")
    return [(first + datetime.timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]


def span(when: str, a: Mapping[str, Any], today: str | None) -> list[str]:
    """The days that a call asks about: `now`, or a span that has to lie in the `past` or `future` of today (if that is known).

    Raises:
      ToolError: the dates cannot be read, are on the wrong side of today, or too far apart.
    """
    start, end = (a["current_date"],) * 2 if when == "now" else (a["start_date"], a["end_date"])
    days = _days(start, end)
    if today and when == "past" and days[-1] >= today:
        raise ToolError("start_date and end_date should be earlier than the current date.")
    if today and when == "future" and days[0] <= today:
        raise ToolError("start_date and end_date should be later than the current date.")
    return days


_COLUMNS: Mapping[str, Sequence[tuple[str, str, str]]] = {  # kind -> (name in the answer, unit, field of Day)
    "temp": [
        ("temperature_2m_max", "°C", "high"),
        ("temperature_2m_min", "°C", "low"),
        ("temperature_2m_mean", "°C", "mean"),
    ],
    "rain": [("rain_sum", "mm", "rain")],
    "snow": [("snowfall_sum", "cm", "snow")],
    "aqi": [("european_aqi_pm2_5", "EAQI", "aqi")],
}


def _series(kind: str, when: str) -> Action[World]:
    """The tool that shows `kind` for days before today (`past`), after it (`future`) or for one day (`now`)."""

    def tool(w: World, a: Mapping[str, Any]) -> Answered[World]:
        city = _near(a["latitude"], a["longitude"])
        days = span(when, a, w.date)
        rows = [weather(w.seed, city.name, day) for day in days]
        daily: dict[str, Any] = {"time": days}
        daily |= {name: [getattr(row, field) for row in rows] for name, _, field in _COLUMNS[kind]}
        units = {name: unit for name, unit, _ in _COLUMNS[kind]}
        result = {"latitude": city.latitude, "longitude": city.longitude, "daily_units": units, "daily": daily}
        return Answered(w, result, {f"{kind}/{city.name}/{day}" for day in days})

    return tool


def _where(w: World, a: Mapping[str, Any]) -> Answered[World]:
    name = _FOLDED.get(a["name"].split(",")[0].strip().casefold())
    if name is None:
        return Answered(w, {"results": []})
    c = CITIES[name]
    found = {"name": c.name, "latitude": c.latitude, "longitude": c.longitude, "country_code": c.country}
    return Answered(w, {"results": [found]}, {f"where/{name}"})


def _elevation(w: World, a: Mapping[str, Any]) -> Answered[World]:
    city = _near(a["latitude"], a["longitude"])
    return Answered(w, {"elevation": [city.elevation]}, {f"elevation/{city.name}"})


def _distance(w: World, a: Mapping[str, Any]) -> Answered[World]:
    pair = sorted([_near(a["latitude1"], a["longitude1"]).name, _near(a["latitude2"], a["longitude2"]).name])
    return Answered(w, round(kilometres(**a), 3), {"distance/" + "/".join(pair)})


_LEVELS = [(20, "good"), (40, "fair"), (60, "moderate"), (80, "poor"), (100, "very poor")]


def level(index: float) -> str:
    """European air quality level of an index."""
    return next((word for limit, word in _LEVELS if index <= limit), "extremely poor")


_AT = {"latitude": "number", "longitude": "number"}
_SPAN = {**_AT, "start_date": "string", "end_date": "string"}
_NOW = {**_AT, "current_date": "string"}
_WORDS = {"temp": "temperature", "rain": "rainfall", "snow": "snowfall"}
_FROM_TO = {"latitude1": "number", "longitude1": "number", "latitude2": "number", "longitude2": "number"}

_LISTED: list[tuple[Tool, Action[World]]] = [
    (Tool("get_user_current_date", {}, "today's date."), lambda w, a: Answered(w, w.date, {"date"})),
    (Tool("get_user_current_location", {}, "the user's city."), lambda w, a: Answered(w, w.location, {"location"})),
    (Tool("get_latitude_longitude", {"name": "string"}, "coordinates of a city."), _where),
    *(
        entry
        for kind, word in _WORDS.items()
        for entry in [
            (Tool(f"get_historical_{kind}", _SPAN, f"daily {word} before today."), _series(kind, "past")),
            (Tool(f"get_current_{kind}", _NOW, f"{word} today."), _series(kind, "now")),
            (Tool(f"get_{kind}_forecast", _SPAN, f"daily {word} after today."), _series(kind, "future")),
        ]
    ),
    (Tool("get_historical_air_quality_index", _SPAN, "daily index before today."), _series("aqi", "past")),
    (Tool("get_current_air_quality_index", _NOW, "index today."), _series("aqi", "now")),
    (
        Tool("get_air_quality_level", {"air_quality_index": "number"}, "level of an index in words."),
        lambda w, a: Answered(w, level(a["air_quality_index"])),
    ),
    (Tool("get_elevation", _AT, "height above the sea in metres."), _elevation),
    (Tool("get_distance", _FROM_TO, "distance in kilometres."), _distance),
    (Tool(FINISH, {"answer": "any"}, "ends the episode with the answer."), looked_up),
    (Tool(CHECK, {}, "names the tools."), looked_up),
]
ACTIONS = {tool.name: (tool, action) for tool, action in _LISTED}


def _shift(day: str, days: int) -> str:
    return (datetime.date.fromisoformat(day) + datetime.timedelta(days=days)).isoformat()


def question(seed: int, split: str) -> Question[World]:
    """The question of that seed, about the weather of `split`."""
    random = Random(f"weather/{split}/{seed}")
    today = (datetime.date(2024, 1, 10) + datetime.timedelta(days=random.randrange(700))).isoformat()
    here, *others = random.sample(sorted(CITIES), 3)
    world = World(f"climate/{split}", today, here)
    return random.choice(_KINDS)(random, world, others)


def _span(
    random: Random, world: World, city: str, kind: str
) -> tuple[str, list[str], list[Day], list[tuple[str, str, dict]]]:
    """(words, days, their weather, calls) of a stretch before or after today at `city`."""
    n = random.randint(3, 9)
    past = random.random() < 0.6
    first, last = (
        (_shift(world.date, -n), _shift(world.date, -1)) if past else (_shift(world.date, 1), _shift(world.date, n))
    )
    days = _days(first, last)
    c = CITIES[city]
    place = "here" if city == world.location else f"in {city}"
    words = f"{'over the last' if past else 'over the next'} {n} days {place} (today not counted)"
    calls: list[tuple[str, str, dict]] = [("What day is it?", "get_user_current_date", {})]
    if city == world.location:
        calls.append(("Where is the user?", "get_user_current_location", {}))
    calls.append((f"I need the coordinates of {city}.", "get_latitude_longitude", {"name": city}))
    tool = f"get_historical_{kind}" if past else f"get_{kind}_forecast"
    at = {"latitude": c.latitude, "longitude": c.longitude, "start_date": first, "end_date": last}
    calls.append(("Now the days in question.", tool, at))
    return words, days, [weather(world.seed, city, d) for d in days], calls


def _extreme(random: Random, world: World, others: list[str]) -> Question[World]:
    words, days, rows, calls = _span(random, world, random.choice([world.location, others[0]]), "temp")
    if random.random() < 0.5:
        highs = [r.high for r in rows]
        if highs.count(max(highs)) == 1 and random.random() < 0.5:
            goal, answer = (
                f"On which day is the highest temperature {words}? Answer as YYYY-MM-DD.",
                days[highs.index(max(highs))],
            )
            return ask(ACTIONS, world, goal, answer, calls)
        return ask(
            ACTIONS, world, f"What is the highest temperature {words}? Answer in degrees Celsius.", max(highs), calls
        )
    lowest = min(r.low for r in rows)
    return ask(ACTIONS, world, f"What is the lowest temperature {words}? Answer in degrees Celsius.", lowest, calls)


def _rain(random: Random, world: World, others: list[str]) -> Question[World]:
    words, _, rows, calls = _span(random, world, random.choice([world.location, others[0]]), "rain")
    if random.random() < 0.5:
        n = sum(r.rain > 0 for r in rows)
        return ask(ACTIONS, world, f"On how many days is there rain {words}? Answer with a number.", n, calls)
    total = round(sum(r.rain for r in rows), 1)
    return ask(ACTIONS, world, f"How much rain falls {words} in all? Answer in millimetres.", total, calls)


def _snow(random: Random, world: World, others: list[str]) -> Question[World]:
    words, _, rows, calls = _span(random, world, random.choice([world.location, others[0]]), "snow")
    n = sum(r.snow > 0 for r in rows)
    return ask(ACTIONS, world, f"On how many days does it snow {words}? Answer with a number.", n, calls)


def _compare(random: Random, world: World, others: list[str]) -> Question[World]:
    """Which of the named cities is warmest, or has the best air, today."""
    names = [world.location, *others]
    rows = {name: weather(world.seed, name, world.date) for name in names}
    air = random.random() < 0.5
    value = (lambda r: -r.aqi) if air else (lambda r: r.mean)
    answer = max(names, key=lambda n: value(rows[n]))
    if sum(value(rows[n]) == value(rows[answer]) for n in names) > 1:
        return _heights(random, world, others)  # a tie has no single answer
    calls: list[tuple[str, str, dict]] = [("What day is it?", "get_user_current_date", {})]
    tool = "get_current_air_quality_index" if air else "get_current_temp"
    for name in names:
        calls.append((f"Where is {name}?", "get_latitude_longitude", {"name": name}))
        at = {"latitude": CITIES[name].latitude, "longitude": CITIES[name].longitude, "current_date": world.date}
        calls.append((f"Now today's value for {name}.", tool, at))
    what = "has the best air (lowest index)" if air else "is the warmest on average"
    goal = f"Which of these cities {what} today: {', '.join(sorted(names))}? Answer with its name."
    return ask(ACTIONS, world, goal, answer, calls)


def _air(random: Random, world: World, others: list[str]) -> Question[World]:
    city = CITIES[others[0]]
    index = weather(world.seed, city.name, world.date).aqi
    calls: list[tuple[str, str, dict]] = [
        ("What day is it?", "get_user_current_date", {}),
        (f"Where is {city.name}?", "get_latitude_longitude", {"name": city.name}),
        (
            "Now the index of today.",
            "get_current_air_quality_index",
            {"latitude": city.latitude, "longitude": city.longitude, "current_date": world.date},
        ),
        (f"The index is {index}; what level is that?", "get_air_quality_level", {"air_quality_index": index}),
    ]
    return ask(
        ACTIONS,
        world,
        f"What is the air quality level in {city.name} today? Answer with the level.",
        level(index),
        calls,
    )


def _split_of(one: str, two: str) -> str:
    """Geography does not depend on the climate's seed, so pairs of cities are shared out among the splits."""
    return {0: "dev", 1: "test"}.get(zlib.crc32("/".join(sorted([one, two])).encode()) % 5, "train")


def _heights(random: Random, world: World, others: list[str]) -> Question[World]:
    """Elevation difference or distance between the user's city and another one; such pairs belong to one split each."""
    others = [c for c in CITIES if c != world.location and _split_of(c, world.location) == world.seed.split("/")[-1]]
    if not others:
        return _rain(random, world, [random.choice([c for c in CITIES if c != world.location])])
    a, b = CITIES[world.location], CITIES[random.choice(others)]
    calls: list[tuple[str, str, dict]] = [("Where is the user?", "get_user_current_location", {})]
    calls += [(f"Where is {c.name}?", "get_latitude_longitude", {"name": c.name}) for c in (a, b)]
    if random.random() < 0.5:
        points = {
            "latitude1": a.latitude,
            "longitude1": a.longitude,
            "latitude2": b.latitude,
            "longitude2": b.longitude,
        }
        goal = f"How far is {b.name} from here? Answer in kilometres, rounded to a whole number."
        return ask(
            ACTIONS, world, goal, round(kilometres(**points)), [*calls, ("Now the distance.", "get_distance", points)]
        )
    for c in (a, b):
        at = {"latitude": c.latitude, "longitude": c.longitude}
        calls.append((f"How high is {c.name}?", "get_elevation", at))
    goal = f"How many metres higher or lower than here is {b.name}? Answer with a number without sign."
    return ask(ACTIONS, world, goal, abs(a.elevation - b.elevation), calls)


_KINDS: tuple[Callable[[Random, World, list[str]], Question[World]], ...] = (
    _extreme,
    _rain,
    _snow,
    _compare,
    _air,
    _heights,
)
