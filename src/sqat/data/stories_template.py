"""The small language plots are written in, and how a plot becomes the text of a story.

    {hero} [took|carried] the {toy} to the {place}.     a line of its own: a sentence; one choice of each [a|b]
    | {hero} went to the {place} with the {toy}.        another way to say the line above; a bare "|" leaves it out
    @alone                                              lines that plots share (`SHARED`), as if written here
    "Where is my ^{toy}?" asked {hero}.                 "^" marks a recall point: the text so far settles the next word

A blank line begins a new paragraph. Slots in braces are filled from the cast.
"""

import re
from functools import cache
from itertools import product

from sqat.data.stories_cast import Cast, Draw
from sqat.data.stories_shared import SHARED

RECALL_MARK = "^"
_SHARED_LINES = re.compile(r"^@(\w+)$", re.MULTILINE)
_CHOICE = re.compile(r"\[([^]]*)\]")

# The ways to say a sentence; each way is given as all of its wordings.
Sentence = list[list[str]]
Paragraph = list[Sentence]


@cache
def parse(plot: str) -> list[Paragraph]:
    whole = _SHARED_LINES.sub(lambda use: SHARED[use[1]].strip(), plot)
    return [_parse_paragraph(text) for text in whole.strip().split("\n\n")]


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


def tell(plot: str, draw: Draw) -> str:
    """A story of this plot with a cast of its own; recall points are still marked."""
    cast = Cast(draw)
    paragraphs = []
    for paragraph in parse(plot):
        # A way is drawn before its wording: a line with many choices shall not crowd out the others.
        sentences = [draw.one(draw.one(ways)) for ways in paragraph]
        paragraphs.append(" ".join(filter(None, sentences)))
    return "\n".join(paragraphs).format_map(cast)
