"""Who and what a built-in story is about: the cast that fills the slots of a plot."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

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


class Word(str):
    """A word of a story, with the forms of it that plots ask for, such as `{hero.their}` and `{toy.a}`."""

    def __new__(cls, text: str, **forms: str) -> "Word":
        word = super().__new__(cls, text)
        vars(word).update(forms)
        return word


def _article(phrase: str) -> str:
    return "an" if phrase[:1] in "aeiou" else "a"


def _person(name: str, kind: str, adjective: str, pronoun: str) -> Word:
    """A child, a grown-up or an animal; `a` introduces it: "a little girl"."""
    they, them, their = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}[pronoun]
    forms = {"they": they, "them": them, "their": their, "They": they.capitalize(), "Their": their.capitalize()}
    return Word(name, kind=kind, a=f"{_article(adjective)} {adjective} {kind}", **forms)


def _noun(name: str, colour: str = "") -> Word:
    """A thing that can be counted; `a` introduces it: "a red ball", "an apple"."""
    phrase = f"{colour} {name}".strip()
    return Word(name, colour=colour, article=_article(phrase), a=f"{_article(phrase)} {phrase}")


def _split(words: Any) -> Any:
    """Strings of words as tuples of words."""
    if isinstance(words, dict):
        return {name: _split(group) for name, group in words.items()}
    return tuple(words.split()) if isinstance(words, str) else words


WORDS: dict[str, Any] = _split(tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8")))


def _places(group: str) -> list[Word]:
    """Where to go, or to hide something; `at` comes before the name: "in the", "by the"."""
    return [Word(name, at=f"{preposition} the") for preposition, names in WORDS[group].items() for name in names]


_CHILDREN = [(name, "girl", "she") for name in WORDS["girls"]] + [(name, "boy", "he") for name in WORDS["boys"]]
_ANIMALS = [(name, "she") for name in WORDS["female_animals"]] + [(name, "he") for name in WORDS["male_animals"]]
_ELDERS = [_person(name, name, "", pronoun) for name, (pronoun,) in WORDS["elders"].items()]
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
    "food food2": [_noun(name) for name in WORDS["foods"]],
    "ingredient ingredient2 ingredient3": WORDS["ingredients"],
    "dish": WORDS["dishes"],
    "animal animal2 animal3": [_noun(name) for name in WORDS["wild_animals"]],
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
            self[each] = _noun(option, self[_COLOUR_OF[each]]) if each in _COLOUR_OF else option
        return self[slot]


def _draw_people(draw: Draw) -> dict[str, Word]:
    """A hero with an elder, two friends of the same kind (child or animal) and a pet, all with different names."""
    (pet_name, pet_pronoun), *animals = draw.several(_ANIMALS, 4)
    if draw.one(_HEROES_ARE_ANIMALS):
        kinds = draw.several(WORDS["character_animals"], 3)
        people = [(name, kind, pronoun) for (name, pronoun), kind in zip(animals, kinds, strict=True)]
    else:
        people = draw.several(_CHILDREN, 3)
    people.append((pet_name, draw.one(WORDS["pets"]), pet_pronoun))
    adjectives = draw.several(WORDS["adjectives"], 4)
    cast = [_person(name, kind, adj, pronoun) for (name, kind, pronoun), adj in zip(people, adjectives, strict=True)]
    return dict(zip(("hero", "friend", "friend2", "pet", "elder"), [*cast, draw.one(_ELDERS)], strict=True))
