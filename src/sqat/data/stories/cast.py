"""Who and what a built-in story is about: the cast that fills the slots of a plot."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

Option = TypeVar("Option")


class Draw:
    """Seeded choices, made with `Random.random` alone: other methods of `Random` may change between Python versions."""

    def __init__(self, key: str) -> None:
        self._random = Random(key).random

    def one(self, options: Sequence[Option]) -> Option:
        """One of the options."""
        return options[int(self._random() * len(options))]

    def several(self, options: Sequence[Option], count: int) -> list[Option]:
        """`count` different options, in random order."""
        chosen: list[Option] = []
        while len(chosen) < count:
            option = self.one(options)
            if option not in chosen:
                chosen.append(option)
        return chosen


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


class Person(NamedTuple):
    """A child, a grown-up or an animal, with its pronouns, such as "he", "him" and "his"."""

    name: str
    kind: str
    adjective: str
    they: str
    them: str
    their: str

    def __str__(self) -> str:
        return self.name

    @property
    def a(self) -> str:
        """How a story introduces them: "a little girl"."""
        return f"{_article(self.adjective)} {self.adjective} {self.kind}"

    @property
    def They(self) -> str:
        return self.they.capitalize()

    @property
    def Their(self) -> str:
        return self.their.capitalize()


class Noun(NamedTuple):
    """A thing that can be counted, with a colour where stories tell it."""

    name: str
    colour: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def article(self) -> str:
        return _article(self.colour or self.name)

    @property
    def a(self) -> str:
        """How a story introduces it: "a red ball", "an apple"."""
        return f"{self.article} {self.colour} {self.name}" if self.colour else f"{self.article} {self.name}"


class Place(NamedTuple):
    """Somewhere to go, or to hide something."""

    name: str
    preposition: str

    def __str__(self) -> str:
        return self.name

    @property
    def at(self) -> str:
        """The words before the name: "in the", "by the"."""
        return f"{self.preposition} the"


def _split(words: Any) -> Any:
    """Strings of words as tuples of words."""
    if isinstance(words, dict):
        return {name: _split(group) for name, group in words.items()}
    return tuple(words.split()) if isinstance(words, str) else words


WORDS: dict[str, Any] = _split(tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8")))


def _nouns(group: str) -> list[Noun]:
    return [Noun(name) for name in WORDS[group]]


def _places(group: str) -> list[Place]:
    return [Place(name, preposition) for preposition, names in WORDS[group].items() for name in names]


_PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
_CHILDREN = [(name, "girl", "she") for name in WORDS["girls"]] + [(name, "boy", "he") for name in WORDS["boys"]]
_ANIMALS = [(name, "she") for name in WORDS["female_animals"]] + [(name, "he") for name in WORDS["male_animals"]]
_ELDERS = [Person(name, name, "", *_PRONOUNS[pronoun]) for name, (pronoun,) in WORDS["elders"].items()]
_HEROES_ARE_ANIMALS = (True, False, False, False)

# The slots of a plot, apart from people, with the words that fill them; slots of one line get different words.
_SLOTS: dict[str, Sequence[Any]] = {
    "colour colour2 colour3": WORDS["colours"],
    "toy toy2": WORDS["toys"],
    "clothing": WORDS["clothes"],
    "fragile": WORDS["fragile"],
    "box": WORDS["containers"],
    "paintable": WORDS["paintable"],
    "shells": WORDS["small_things"],
    "number": WORDS["numbers"],
    "food food2": _nouns("foods"),
    "ingredient ingredient2 ingredient3": WORDS["ingredients"],
    "dish": WORDS["dishes"],
    "animal animal2 animal3": _nouns("wild_animals"),
    "place place2 place3": _places("places"),
    "shop": _places("shops"),
    "spot spot2": _places("spots"),
    "hobby": WORDS["hobbies"],
    "one_day": WORDS["days"],
}
_GROUPS = {slot: (line.split(), options) for line, options in _SLOTS.items() for slot in line.split()}
_COLOUR_OF = {"toy": "colour", "toy2": "colour2", "clothing": "colour3", "fragile": "colour3", "box": "colour3"}


class Cast(dict[str, Any]):
    """The people and things of one story by slot. A thing is drawn when its slot is first named: plots need few."""

    def __init__(self, draw: Draw) -> None:
        super().__init__(_draw_people(draw))
        self._draw = draw

    def __missing__(self, slot: str) -> Any:
        slots, options = _GROUPS[slot]
        for each, option in zip(slots, self._draw.several(options, len(slots)), strict=True):
            self[each] = Noun(option, self[_COLOUR_OF[each]]) if each in _COLOUR_OF else option
        return self[slot]


def _draw_people(draw: Draw) -> dict[str, Person]:
    """A hero with an elder, two friends of the same kind (child or animal) and a pet, all with different names."""
    (pet_name, pet_pronoun), *animals = draw.several(_ANIMALS, 4)
    if draw.one(_HEROES_ARE_ANIMALS):
        kinds = draw.several(WORDS["character_animals"], 3)
        people = [(name, kind, pronoun) for (name, pronoun), kind in zip(animals, kinds, strict=True)]
    else:
        people = draw.several(_CHILDREN, 3)
    people.append((pet_name, draw.one(WORDS["pets"]), pet_pronoun))
    slots = ("hero", "friend", "friend2", "pet")
    cast = {
        slot: Person(name, kind, adjective, *_PRONOUNS[pronoun])
        for slot, (name, kind, pronoun), adjective in zip(
            slots, people, draw.several(WORDS["adjectives"], 4), strict=True
        )
    }
    return cast | {"elder": draw.one(_ELDERS)}
