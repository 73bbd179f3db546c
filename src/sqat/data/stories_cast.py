"""Who and what a built-in story is about: the cast that fills the slots of a plot."""

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple, TypeVar

from sqat.data import stories_words as words

Option = TypeVar("Option")


class Draw:
    """Seeded choices, made with `Random.random` alone: other methods of `Random` may change between Python versions."""

    def __init__(self, key: str) -> None:
        self._random = Random(key).random

    def one(self, options: Sequence[Option]) -> Option:
        return options[int(self._random() * len(options))]

    def several(self, options: Sequence[Option], count: int) -> list[Option]:
        """`count` different options, in random order."""
        chosen: list[Option] = []
        while len(chosen) < count:
            option = self.one(options)
            if option not in chosen:
                chosen.append(option)
        return chosen


def article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


class Person(NamedTuple):
    """A child, a grown-up or an animal; `they`, `them` and `their` are its pronouns, such as "he", "him" and "his"."""

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
        return f"{article(self.adjective)} {self.adjective} {self.kind}"

    @property
    def They(self) -> str:
        return self.they.capitalize()

    @property
    def Their(self) -> str:
        return self.their.capitalize()


class Noun(NamedTuple):
    """Something that can be counted, with a colour where stories tell it."""

    name: str
    colour: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def article(self) -> str:
        return article(self.colour or self.name)

    @property
    def a(self) -> str:
        """How a story introduces it: "a red ball", "an apple"."""
        return f"{self.article} {self.colour} {self.name}" if self.colour else f"{self.article} {self.name}"


class Place(NamedTuple):
    name: str
    preposition: str

    def __str__(self) -> str:
        return self.name

    @property
    def at(self) -> str:
        """The words before the name: "in the", "by the"."""
        return f"{self.preposition} the"


def _places(groups: dict[str, tuple[str, ...]]) -> list[Place]:
    return [Place(name, preposition) for preposition, names in groups.items() for name in names]


_PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
_CHILDREN = [(name, "girl", "she") for name in words.GIRLS] + [(name, "boy", "he") for name in words.BOYS]
_ANIMALS = [(name, "she") for name in words.FEMALE_ANIMALS] + [(name, "he") for name in words.MALE_ANIMALS]
_ELDERS = [Person(name, name, "", *_PRONOUNS[pronoun]) for name, pronoun in words.ELDERS.items()]
_HEROES_ARE_ANIMALS = (True, False, False, False)

# The slots of a plot beside its people, with the words that fill them; slots of one line get different words.
_SLOTS: dict[str, Sequence[Any]] = {
    "colour colour2 colour3": words.COLOURS,
    "toy toy2": words.TOYS,
    "clothing": words.CLOTHES,
    "fragile": words.FRAGILE,
    "box": words.CONTAINERS,
    "paintable": words.PAINTABLE,
    "shells": words.SMALL_THINGS,
    "number": words.NUMBERS,
    "food food2": [Noun(name) for name in words.FOODS],
    "ingredient ingredient2 ingredient3": words.INGREDIENTS,
    "dish": words.DISHES,
    "animal animal2 animal3": [Noun(name) for name in words.WILD_ANIMALS],
    "place place2 place3": _places(words.PLACES),
    "shop": _places(words.SHOPS),
    "spot spot2": _places(words.SPOTS),
    "hobby": words.HOBBIES,
    "one_day": words.DAYS,
}
_GROUPS = {slot: (line.split(), options) for line, options in _SLOTS.items() for slot in line.split()}
_COLOUR_OF = {"toy": "colour", "toy2": "colour2", "clothing": "colour3", "fragile": "colour3", "box": "colour3"}


class Cast(dict[str, Any]):
    """The people and things of one story by slot; things are drawn when a slot is first named, as plots need few."""

    def __init__(self, draw: Draw) -> None:
        super().__init__(_draw_people(draw))
        self._draw = draw

    def __missing__(self, slot: str) -> Any:
        slots, options = _GROUPS[slot]
        for each, option in zip(slots, self._draw.several(options, len(slots)), strict=True):
            self[each] = Noun(option, self[_COLOUR_OF[each]]) if each in _COLOUR_OF else option
        return self[slot]


def _draw_people(draw: Draw) -> dict[str, Person]:
    """A hero with an elder, two friends of the hero's world (child or animal) and a pet; their names are different."""
    (pet_name, pet_pronoun), *animals = draw.several(_ANIMALS, 4)
    if draw.one(_HEROES_ARE_ANIMALS):
        kinds = draw.several(words.CHARACTER_ANIMALS, 3)
        people = [(name, kind, pronoun) for (name, pronoun), kind in zip(animals, kinds, strict=True)]
    else:
        people = draw.several(_CHILDREN, 3)
    people.append((pet_name, draw.one(words.PETS), pet_pronoun))
    slots = ("hero", "friend", "friend2", "pet")
    cast = {
        slot: Person(name, kind, adjective, *_PRONOUNS[pronoun])
        for slot, (name, kind, pronoun), adjective in zip(slots, people, draw.several(words.ADJECTIVES, 4), strict=True)
    }
    return cast | {"elder": draw.one(_ELDERS)}
