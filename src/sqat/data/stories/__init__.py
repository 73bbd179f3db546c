"""The built-in corpus: an endless stream of little stories for small children, written from an index and a seed.

The stories give attention something to attend to: characters keep their names, and things, places and colours told
early are needed again later. Any story can be written without those before it, so sharding and resuming are trivial.
:func:`recall_probe` asks for one word that the story so far determines.

`plots.toml` says what happens, in a small language explained there; `words.toml` holds the words; `cast` draws who and
what a story is about. The package needs the standard library alone.
"""

import re
import tomllib
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from sqat.data.stories.cast import WORDS, Cast, Draw
from sqat.errors import ConfigError

# Raise this whenever the text of any story changes: fingerprints of token files include it.
GENERATOR_VERSION: int = 1

SPLITS = ("train", "validation")
PROBE_STREAM = "probe"  # probes have a stream of their own, so no probed story is ever trained on
DISTRACTORS = 4
RECALL_MARK = "^"

# The words that a probe may ask for, by kind.
KINDS: dict[str, tuple[str, ...]] = {
    "name": (*WORDS["girls"], *WORDS["boys"], *WORDS["female_animals"], *WORDS["male_animals"]),
    "elder": tuple(WORDS["elders"]),
    "pet": WORDS["pets"],
    "animal": WORDS["wild_animals"],
    "colour": WORDS["colours"],
    "number": WORDS["numbers"],
    "thing": (*WORDS["toys"], *WORDS["clothes"], *WORDS["fragile"]),
    "small things": WORDS["small_things"],
    "paintable thing": WORDS["paintable"],
    "container": WORDS["containers"],
    "food": WORDS["foods"],
    "ingredient": WORDS["ingredients"],
    "dish": WORDS["dishes"],
    "place": tuple(chain(*WORDS["places"].values(), *WORDS["shops"].values())),
    "spot": tuple(chain(*WORDS["spots"].values())),
}

_WORD = re.compile(r"[A-Za-z]+")
_SHARED_LINES = re.compile(r"^@(\w+)$", re.MULTILINE)
_CHOICE = re.compile(r"\[([^]]*)\]")

# The ways to say a sentence; each way is a list of all its wordings.
Sentence = list[list[str]]
Paragraph = list[Sentence]


class Probe(NamedTuple):
    """A test of recall: the model should find `answer` more probable than any of `distractors` (chance is 1 in 5)."""

    prompt: str
    """The beginning of a story, up to the answer."""
    answer: str
    """The one word that must follow."""
    distractors: tuple[str, ...]
    """Four other words of the answer's kind (name, colour, place, ...); those that occur in the prompt come first."""


def story(index: int, seed: int = 0, split: str = "train") -> str:
    """The story at `index` of the endless stream that `seed` and `split` give: 60 to 200 words in up to four lines.

    The text depends on the arguments and on `GENERATOR_VERSION` alone, not on other stories or the Python version.

    Raises:
        ConfigError: `index` is negative, or `split` is neither "train" nor "validation".
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; it must be {' or '.join(map(repr, SPLITS))}")
    return marked_story(_draw_at(index, seed, split)).replace(RECALL_MARK, "")


def recall_probe(index: int, seed: int = 0) -> Probe:
    """The probe at `index`: a story goes on from `prompt` with " " and `answer`, and the prompt tells the answer.

    Raises:
        ConfigError: `index` is negative.
    """
    draw = _draw_at(index, seed, PROBE_STREAM)
    before, *after_marks = marked_story(draw).split(RECALL_MARK)
    point = draw.one(range(len(after_marks)))
    prompt = "".join((before, *after_marks[:point]))
    answer = _WORD.findall(after_marks[point])[0]
    kind = next(words for words in KINDS.values() if answer in words)
    told = [word for word in dict.fromkeys(_WORD.findall(prompt)) if word in kind and word != answer][:DISTRACTORS]
    untold = [word for word in kind if word != answer and word not in told]
    return Probe(prompt.removesuffix(" "), answer, (*told, *draw.several(untold, DISTRACTORS - len(told))))


def _draw_at(index: int, seed: int, stream: str) -> Draw:
    if index < 0:
        raise ConfigError(f"index is {index}; it must be 0 or more")
    return Draw(f"{stream}/{seed}/{index}")


def marked_story(draw: Draw) -> str:
    """A story whose recall points are still marked."""
    plot = draw.one(plots())
    cast = Cast(draw)
    paragraphs = []
    for paragraph in plot:
        # Draw the way before its wording, so that a line with many choices does not crowd out the others.
        sentences = [draw.one(draw.one(ways)) for ways in paragraph]
        paragraphs.append(" ".join(filter(None, sentences)))
    return "\n".join(paragraphs).format_map(cast)


@cache
def plots() -> list[list[Paragraph]]:
    """All plots, parsed."""
    texts = tomllib.loads(Path(__file__).with_name("plots.toml").read_text(encoding="utf-8"))
    shared = {name: text.strip() for name, text in texts["shared"].items()}
    return [
        [_parse_paragraph(part) for part in _SHARED_LINES.sub(lambda use: shared[use[1]], plot).strip().split("\n\n")]
        for plot in texts["plots"].values()
    ]


def _parse_paragraph(text: str) -> Paragraph:
    sentences: Paragraph = []
    for line in text.splitlines():
        if line.startswith("|"):
            sentences[-1].append(_wordings(line[1:].strip()))
        else:
            sentences.append([_wordings(line)])
    return sentences


def _wordings(line: str) -> list[str]:
    """All wordings of a line: one for every combination of its choices."""
    # Splitting at a pattern with one group gives fixed text and the insides of brackets in turn.
    parts = [part.split("|") if is_choice % 2 else [part] for is_choice, part in enumerate(_CHOICE.split(line))]
    return ["".join(combination) for combination in product(*parts)]
