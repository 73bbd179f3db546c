"""The built-in corpus: an endless stream of little stories for small children, written from an index and a seed.

The stories are made so that attention has something to attend to: characters keep their names, and things, places and
colours that were told early are needed again later. Any story can be written without those before it, which makes
sharding and resuming trivial. `recall_probe` asks for one word that the story so far determines.

How a story is made: `stories_cast` draws who and what it is about, a plot (`stories_finding`, `stories_sharing`,
`stories_deeds`, `stories_short`) says what happens, and `stories_template` puts the two together.
"""

import re
from typing import NamedTuple

from sqat.data import stories_deeds, stories_finding, stories_sharing, stories_short
from sqat.data.stories_cast import Draw
from sqat.data.stories_template import RECALL_MARK, tell
from sqat.data.stories_words import KINDS
from sqat.errors import ConfigError

# To be raised whenever the text of any story changes: fingerprints of token files include it.
GENERATOR_VERSION: int = 1

SPLITS = ("train", "validation")
# Probes are cut from a stream of their own: no probed story is ever trained on.
PROBE_STREAM = "probe"
DISTRACTORS = 4

PLOTS = tuple(
    plot
    for plots in (stories_finding, stories_sharing, stories_deeds, stories_short)
    for name, plot in vars(plots).items()
    if name.isupper()
)
_WORD = re.compile(r"[A-Za-z]+")


class Probe(NamedTuple):
    """The beginning of a story, the one word that must follow, and other words of its kind (chance is 1 in 5)."""

    prompt: str
    answer: str
    distractors: tuple[str, ...]


def story(index: int, seed: int = 0, split: str = "train") -> str:
    """The story at `index` (0 or more) of the endless stream given by `seed` and `split` ("train" or "validation").

    60 to 200 words in up to four paragraphs, one to a line. The text depends on the arguments and `GENERATOR_VERSION`
    alone, not on the Python version or on other stories. Raises `ConfigError` for another index or split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; it must be {' or '.join(map(repr, SPLITS))}")
    return _marked_story(_draw_at(index, seed, split)).replace(RECALL_MARK, "")


def recall_probe(index: int, seed: int = 0) -> Probe:
    """The probe at `index` (0 or more): a story begins with `prompt + " " + answer`, and the prompt tells the answer.

    The distractors are of the answer's kind (name, colour, place, ...); those that occur in the prompt come first.
    Raises `ConfigError` for a negative index.
    """
    draw = _draw_at(index, seed, PROBE_STREAM)
    before, *after_marks = _marked_story(draw).split(RECALL_MARK)
    point = draw.one(range(len(after_marks)))
    prompt = "".join((before, *after_marks[:point]))
    answer = _WORD.findall(after_marks[point])[0]
    return Probe(prompt.removesuffix(" "), answer, _distractors(prompt, answer, draw))


def _draw_at(index: int, seed: int, stream: str) -> Draw:
    if index < 0:
        raise ConfigError(f"index is {index}; it must be 0 or more")
    return Draw(f"{stream}/{seed}/{index}")


def _marked_story(draw: Draw) -> str:
    return tell(draw.one(PLOTS), draw)


def _distractors(prompt: str, answer: str, draw: Draw) -> tuple[str, ...]:
    kind = next(words for words in KINDS.values() if answer in words)
    told = [word for word in dict.fromkeys(_WORD.findall(prompt)) if word in kind and word != answer][:DISTRACTORS]
    untold = [word for word in kind if word != answer and word not in told]
    return (*told, *draw.several(untold, DISTRACTORS - len(told)))
