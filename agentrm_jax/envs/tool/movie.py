"""An invented film database, a different one for every split, and questions about it.

Tools, arguments and the shape of answers are those of AgentBoard's movie tools over TMDB.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, NamedTuple

from agentrm_jax.envs.tool.calls import CHECK, FINISH, Tool, ToolError
from agentrm_jax.envs.tool.question import Action, Answered, Question, ask, looked_up

_FIRST = str.split(
    "Alma Bela Cyrus Delia Egon Freya Goran Hedda Ivo Juno Kofi Lena Milo Nadia Otis Petra Quinn Rosa Samir Tova"
)
_LAST = str.split(
    "Abaza Brandt Castell Dvorak Eklund Farouk Gallo Hartig Ibsen Jansky Kovacs Lindqvist Moreau Novak Okafor"
)
_PLACES = ["Bergen, Norway", "Porto, Portugal", "Accra, Ghana", "Graz, Austria", "Busan, South Korea", "Cork, Ireland"]
_PLACES += ["Tampere, Finland", "Izmir, Turkey", "Cusco, Peru", "Halifax, Canada", "Pune, India", "Turin, Italy"]
_ADJECTIVES = str.split(
    "Amber Broken Crimson Distant Electric Frozen Gentle Hidden Iron Jade Lonely Midnight Paper Silent"
)
_NOUNS = str.split(
    "Harbour Orchard Signal Garden Bridge Winter Mirror Comet Library Island Parade Engine Letter Lantern"
)
_GENRES = {1: "Drama", 2: "Comedy", 3: "Thriller", 4: "Adventure", 5: "Romance", 6: "Mystery", 7: "Fantasy", 8: "War"}
_KEYWORDS = str.split(
    "lighthouse heist orchestra exile chess railway twins island storm inheritance radio duel carnival desert"
)
_STUDIOS = ["Blue Heron Films", "Tall Tower Pictures", "Nine Oaks", "Marble Lane Studio", "Salt & Sons", "Quarry Hill"]
_COUNTRIES = {"NO": "Norway", "PT": "Portugal", "GH": "Ghana", "AT": "Austria", "KR": "South Korea", "IE": "Ireland"}
_ROLES = str.split("Captain Doctor Inspector Professor Sister Mayor Colonel Baroness Sergeant Uncle")
_TONGUES = {"NL": "Dutch", "DE": "German", "RU": "Russian", "JP": "Japanese"}
_MAX_LISTED = 10


class Film(NamedTuple):
    id: str
    title: str
    overview: str
    release_date: str
    genres: tuple[int, ...]
    budget: int
    revenue: int
    vote_average: float
    keywords: tuple[str, ...]
    companies: tuple[str, ...]
    countries: tuple[str, ...]
    cast: tuple[tuple[str, str], ...]  # (person id, character)
    crew: tuple[tuple[str, str], ...]  # (person id, job)
    other_titles: tuple[str, ...]


class Person(NamedTuple):
    id: str
    name: str
    birthday: str
    place_of_birth: str
    imdb_id: str


class Database(NamedTuple):
    """Films and people by id; the lists of ids a person appears in, in order of release."""

    films: Mapping[str, Film]
    people: Mapping[str, Person]
    acted: Mapping[str, tuple[str, ...]]
    worked: Mapping[str, tuple[str, ...]]


@functools.lru_cache(maxsize=4)
def database(seed: str) -> Database:
    """120 films and 90 people."""
    random = Random(f"films/{seed}")
    ids = [str(n) for n in random.sample(range(1000, 100_000), 210)]
    names = random.sample([f"{a} {b}" for a in _FIRST for b in _LAST], 90)
    people = {
        key: Person(key, name, _date(random, 1930, 2000), random.choice(_PLACES), f"nm{random.randrange(10**7):07}")
        for key, name in zip(ids, names, strict=False)
    }
    titles = random.sample([f"The {a} {n}" for a, n in itertools.product(_ADJECTIVES, _NOUNS)], 120)
    films = [_film(random, key, title, list(people)) for key, title in zip(ids[90:], titles, strict=True)]
    films.sort(key=lambda f: f.release_date)

    def appearing(field: str) -> dict[str, tuple[str, ...]]:
        return {p: tuple(f.id for f in films if any(p == q for q, _ in getattr(f, field))) for p in people}

    return Database({f.id: f for f in films}, people, appearing("cast"), appearing("crew"))


def _date(random: Random, first: int, last: int) -> str:
    return f"{random.randint(first, last)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}"


def _film(random: Random, key: str, title: str, people: list[str]) -> Film:
    actors = random.sample(people[30:], random.randint(3, 5))
    director, writer, producer = random.choice(people[:20]), random.choice(people[20:40]), random.choice(people[20:40])
    characters = random.sample([f"{r} {n}" for r in _ROLES for n in _LAST], len(actors))
    keywords = tuple(sorted(random.sample(_KEYWORDS, random.randint(2, 5))))
    budget = random.randint(2, 180) * 500_000
    return Film(
        key,
        title,
        f"A story about {keywords[0]} and {keywords[1]}.",
        _date(random, 1975, 2023),
        tuple(sorted(random.sample(sorted(_GENRES), random.randint(1, 3)))),
        budget,
        int(budget * random.uniform(0.2, 6)),
        round(random.uniform(3.0, 9.5), 1),
        keywords,
        tuple(random.sample(_STUDIOS, random.randint(1, 2))),
        tuple(sorted(random.sample(sorted(_COUNTRIES), random.randint(1, 3)))),
        tuple(zip(actors, characters, strict=True)),
        ((director, "Director"), (writer, "Writer"), (producer, "Producer")),
        tuple(f"{title} ({_COUNTRIES[c]} title)" for c in random.sample(sorted(_COUNTRIES), random.randint(1, 3))),
    )


def _found(records: Iterable[Any], field: str, text: str) -> Any | None:
    """The first record whose `field` is `text`, or else holds it; case does not matter."""
    wanted, listed = text.strip().casefold(), list(records)
    same = [r for r in listed if getattr(r, field).casefold() == wanted]
    part = [r for r in listed if wanted and wanted in getattr(r, field).casefold()]
    return next(iter(same or part), None)


def _of(table: Mapping[str, Any], key: str, what: str) -> Any:
    if key not in table:
        raise ToolError(f"There is no {what} with id {key}.")
    return table[key]


def _search_movie(db: Database, a: Mapping[str, Any]) -> Answered[Database]:
    film = _found(db.films.values(), "title", a["movie_name"])
    if film is None:
        return Answered(db, [])
    return Answered(db, [{"id": film.id, "overview": film.overview, "title": film.title}], {f"find/{film.id}"})


def _search_person(db: Database, a: Mapping[str, Any]) -> Answered[Database]:
    person = _found(db.people.values(), "name", a["person_name"])
    return Answered(db, [{"id": person.id, "name": person.name}], {f"find/{person.id}"}) if person else Answered(db, [])


def _about_film(part: str, show: Callable[[Database, Film], Any]) -> Action[Database]:
    def tool(db: Database, a: Mapping[str, Any]) -> Answered[Database]:
        film = _of(db.films, a["movie_id"], "movie")
        return Answered(db, show(db, film), {f"{part}/{film.id}"})

    return tool


def _about_person(part: str, show: Callable[[Database, Person], Any]) -> Action[Database]:
    def tool(db: Database, a: Mapping[str, Any]) -> Answered[Database]:
        person = _of(db.people, a["person_id"], "person")
        return Answered(db, show(db, person), {f"{part}/{person.id}"})

    return tool


def _details(db: Database, f: Film) -> Any:
    genres = [{"id": g, "name": _GENRES[g]} for g in f.genres]
    keys = {"title": f.title, "budget": f.budget, "genres": genres, "revenue": f.revenue}
    return {**keys, "vote_average": f.vote_average, "release_date": f.release_date}


def _credits(db: Database, kind: str, listed: Iterable[tuple[str, str]]) -> Any:
    label = "character" if kind == "cast" else "job"
    return {kind: [{"id": p, "name": db.people[p].name, label: role} for p, role in listed][:_MAX_LISTED]}


def _appearances(db: Database, kind: str, person: Person) -> Any:
    label = "character" if kind == "cast" else "job"
    films = (db.acted if kind == "cast" else db.worked)[person.id]
    roles = [(f, role) for f in films for p, role in getattr(db.films[f], kind) if p == person.id]
    return {kind: [{"id": f, "title": db.films[f].title, label: role} for f, role in roles][:_MAX_LISTED]}


def _person(db: Database, p: Person) -> Any:
    biography = f"{p.name} was born in {p.place_of_birth}."
    return {"name": p.name, "biography": biography, "birthday": p.birthday, "place_of_birth": p.place_of_birth}


def _ids(db: Database, p: Person) -> Any:
    handle = p.name.replace(" ", "").lower()
    return {"imdb_id": p.imdb_id, "facebook_id": handle, "instagram_id": handle, "twitter_id": handle[:12]}


def _translations(db: Database, f: Film) -> Any:
    return {
        "id": f.id,
        "translations": [
            {"iso_3166_1": c, "english_name": name, "data": {"overview": f"[{name}] {f.overview}"}}
            for c, name in _TONGUES.items()
        ],
    }


_FILM, _PERSON = {"movie_id": "string"}, {"person_id": "string"}
_LISTED: list[tuple[Tool, Action[Database]]] = [
    (Tool("get_search_movie", {"movie_name": "string"}, "id of a movie."), _search_movie),
    (Tool("get_movie_details", _FILM, "genres, money, vote, release date."), _about_film("details", _details)),
    (
        Tool("get_movie_production_companies", _FILM, "companies."),
        _about_film("companies", lambda db, f: {"production_companies": [{"name": c} for c in f.companies]}),
    ),
    (
        Tool("get_movie_production_countries", _FILM, "countries."),
        _about_film(
            "countries",
            lambda db, f: {"production_countries": [{"iso_3166_1": c, "name": _COUNTRIES[c]} for c in f.countries]},
        ),
    ),
    (
        Tool("get_movie_cast", _FILM, "actors, roles."),
        _about_film("cast", lambda db, f: _credits(db, "cast", f.cast)),
    ),
    (
        Tool("get_movie_crew", _FILM, "director, writer, producer."),
        _about_film("crew", lambda db, f: _credits(db, "crew", f.crew)),
    ),
    (
        Tool("get_movie_keywords", _FILM, "keywords."),
        _about_film("keywords", lambda db, f: {"keywords": list(f.keywords)}),
    ),
    (
        Tool("get_movie_alternative_titles", _FILM, "other titles."),
        _about_film("titles", lambda db, f: {"id": f.id, "titles": [{"title": t} for t in f.other_titles]}),
    ),
    (Tool("get_movie_translation", _FILM, "translated overviews."), _about_film("translation", _translations)),
    (Tool("get_search_person", {"person_name": "string"}, "id of a person."), _search_person),
    (Tool("get_person_details", _PERSON, "birthday, birthplace, biography."), _about_person("person", _person)),
    (
        Tool("get_person_cast", _PERSON, "movies the person acted in."),
        _about_person("acted", lambda db, p: _appearances(db, "cast", p)),
    ),
    (
        Tool("get_person_crew", _PERSON, "movies the person directed, wrote or produced."),
        _about_person("worked", lambda db, p: _appearances(db, "crew", p)),
    ),
    (Tool("get_person_external_ids", _PERSON, "ids elsewhere."), _about_person("ids", _ids)),
    (Tool(FINISH, {"answer": "any"}, "ends the episode with the answer."), looked_up),
    (Tool(CHECK, {}, "names the tools."), looked_up),
]
ACTIONS = {tool.name: (tool, action) for tool, action in _LISTED}

_Calls = list[tuple[str, str, Mapping[str, Any]]]


def _find(film: Film) -> tuple[str, str, Mapping[str, Any]]:
    return f"I need the id of {film.title}.", "get_search_movie", {"movie_name": film.title}


def _look(thought: str, part: str, film: Film) -> tuple[str, str, Mapping[str, Any]]:
    return thought, f"get_movie_{part}", {"movie_id": film.id}


def _plain(random: Random, db: Database) -> Question[Database]:
    """One fact about one film."""
    film = random.choice(list(db.films.values()))
    which = random.randrange(6)
    part = ["details", "details", "details", "production_countries", "keywords", "production_companies"][which]
    goal, answer = [
        (f'When was "{film.title}" released? Answer as YYYY-MM-DD.', film.release_date),
        (f'What was the budget of "{film.title}"? Answer with a number.', film.budget),
        (f'Which genres does "{film.title}" have? Answer with a list.', [_GENRES[g] for g in film.genres]),
        (
            f'In which countries was "{film.title}" produced? Answer with a list of names.',
            [_COUNTRIES[c] for c in film.countries],
        ),
        (f'How many keywords does "{film.title}" have? Answer with a number.', len(film.keywords)),
        (f'Which companies produced "{film.title}"? Answer with a list.', list(film.companies)),
    ][which]
    return ask(ACTIONS, db, goal, answer, [_find(film), _look("Now I look it up.", part, film)])


def _through_people(random: Random, db: Database) -> Question[Database]:
    """A fact about somebody known by what they did in a film."""
    film = random.choice(list(db.films.values()))
    person, role = random.choice(film.cast)
    director = next(p for p, job in film.crew if job == "Director")
    cast = [_find(film), _look("Who played in it?", "cast", film)]
    crew = [_find(film), _look("Who directed it?", "crew", film)]
    kind = random.randrange(5)
    if kind == 0:
        goal, answer = f'Who played {role} in "{film.title}"? Answer with a name.', db.people[person].name
        return ask(ACTIONS, db, goal, answer, cast)
    if kind == 1:
        goal = f'Which role did {db.people[person].name} play in "{film.title}"? Answer with the name of the character.'
        return ask(ACTIONS, db, goal, role, cast)
    if kind == 2:
        last = ("Now the director's details.", "get_person_details", {"person_id": director})
        goal, answer = f'Where was the director of "{film.title}" born?', db.people[director].place_of_birth
        return ask(ACTIONS, db, goal, answer, [*crew, last])
    if kind == 3:
        last = ("Now the actor's details.", "get_person_details", {"person_id": person})
        goal = f'When was the actor who played {role} in "{film.title}" born? Answer as YYYY-MM-DD.'
        return ask(ACTIONS, db, goal, db.people[person].birthday, [*cast, last])
    last = ("Now the actor's ids.", "get_person_external_ids", {"person_id": person})
    goal = f'What is the IMDb id of the actor who played {role} in "{film.title}"?'
    return ask(ACTIONS, db, goal, db.people[person].imdb_id, [*cast, last])


def _best_of(random: Random, db: Database) -> Question[Database]:
    """The best or most lucrative film of a director."""
    directors = sorted({p for f in db.films.values() for p, job in f.crew if job == "Director"})
    director = db.people[random.choice([d for d in directors if len(db.worked[d]) <= _MAX_LISTED])]
    films = [db.films[f] for f in db.worked[director.id]]
    field, words = random.choice(
        [("vote_average", "has the highest vote average"), ("revenue", "earned the most revenue")]
    )
    values = [getattr(f, field) for f in films]
    if values.count(max(values)) > 1:
        return _through_people(random, db)
    calls: _Calls = [
        (f"I need the id of {director.name}.", "get_search_person", {"person_name": director.name}),
        ("Which movies are there?", "get_person_crew", {"person_id": director.id}),
        *(_look(f"How is {f.title}?", "details", f) for f in films),
    ]
    goal = f"Which movie directed by {director.name} {words}? Answer with its title."
    return ask(ACTIONS, db, goal, films[values.index(max(values))].title, calls)


def _together(random: Random, db: Database) -> Question[Database]:
    """What two actors, or two films, have in common."""
    film = random.choice(list(db.films.values()))
    if random.random() < 0.5:
        (one, _), (two, _) = random.sample(film.cast, 2)
        if max(len(db.acted[one]), len(db.acted[two])) > _MAX_LISTED:
            return _plain(random, db)  # the tool would not list all of them
        both = [db.films[f].title for f in db.acted[one] if f in db.acted[two]]
        calls: _Calls = []
        for p in (db.people[one], db.people[two]):
            calls.append((f"I need the id of {p.name}.", "get_search_person", {"person_name": p.name}))
            calls.append((f"Where did {p.name} act?", "get_person_cast", {"person_id": p.id}))
        names = f"{db.people[one].name} and {db.people[two].name}"
        return ask(ACTIONS, db, f"In which movies did both {names} act? Answer with a list of titles.", both, calls)
    other = random.choice([f for f in db.films.values() if f.id != film.id])
    calls = [
        _find(film),
        _look("Its keywords.", "keywords", film),
        _find(other),
        _look("Its keywords.", "keywords", other),
    ]
    shared = [k for k in film.keywords if k in other.keywords]
    goal = f'How many keywords do "{film.title}" and "{other.title}" share? Answer with a number.'
    return ask(ACTIONS, db, goal, len(shared), calls)


def question(seed: int, split: str) -> Question[Database]:
    """The question of that seed, about the films of `split`."""
    random = Random(f"movie/{split}/{seed}")
    kinds = (_plain, _through_people, _through_people, _best_of, _together)
    return random.choice(kinds)(random, database(split))
