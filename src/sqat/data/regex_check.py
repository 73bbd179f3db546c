"""Regular expressions of others: accepted where matching cannot blow up.

A backtracking matcher takes time exponential in the text where a repetition is repeated, as in (a+)+, and a power of
its length where repetitions follow one another, as in a*a*a*. Tokenizers split text with alternatives of a few plain
repetitions each, so more than those is refused.
"""

from __future__ import annotations

import re

from sqat.untrusted import shown

MAX_LENGTH = 4000
MAX_REPETITIONS = 3  # of no fixed length, in one alternative
MAX_TIMES = 100  # in {n,m}

_TIMES = re.compile(r"\{(\d{0,6})(,?)(\d{0,6})\}")
_RECURSIVE = re.compile(r"\\[1-9kg]|\(\?(?:[R&\d(~@]|P[>=])")


def require_quick_regex(pattern: object) -> None:
    """Raise a ValueError unless a regular expression is a string without repeated repetitions, back-references or
    recursion, of at most `MAX_REPETITIONS` repetitions in each alternative.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_LENGTH:
        raise ValueError(
            f"the regular expression is {shown(pattern)}, but must be text of at most {MAX_LENGTH:,} characters"
        )
    if _RECURSIVE.search(pattern):
        raise ValueError(f"the regular expression {shown(pattern)} refers to itself or to what it matched before")
    place, depth, repetitions, after_group, after_repetition = 0, 0, 0, False, False
    while place < len(pattern):
        times = _TIMES.match(pattern, place) if pattern[place] == "{" else None
        if times or pattern[place] in "*+?":
            most, place = _repetition(pattern, place, times)
            if after_repetition or (after_group and most > 1):
                raise ValueError(f"the regular expression {shown(pattern)} repeats a repetition or a group")
            repetitions += most > 1
            after_repetition, after_group = True, False
            if repetitions > MAX_REPETITIONS:
                raise ValueError(
                    f"the regular expression {shown(pattern)} has more than {MAX_REPETITIONS} repetitions in a row"
                )
            continue
        depth += {"(": 1, ")": -1}.get(pattern[place], 0)
        if pattern[place] == "|" and depth == 0:
            repetitions = 0
        after_group, after_repetition = pattern[place] == ")", False
        # What a group's parenthesis is followed by, such as ?: or ?!, is no repetition.
        opening = re.compile(r"\(\?(?:<?[=!]|[>:]|[imsx-]{1,8}[:)])").match(pattern, place)
        place = opening.end() if opening else _end_of_atom(pattern, place)


def _repetition(pattern: str, place: int, times: re.Match[str] | None) -> tuple[float, int]:
    """How often at most, and where the repetition ends, a following ? (lazy) or + (possessive) included."""
    if times is None:
        most = 1.0 if pattern[place] == "?" else float("inf")
        end = place + 1
    else:
        most = float(times[3] or times[1] or 0) if times[3] or not times[2] else float("inf")
        end = times.end()
        if most != float("inf") and most > MAX_TIMES:
            right = f"but at most {MAX_TIMES} are read"
            raise ValueError(f"the regular expression {shown(pattern)} repeats {most:.0f} times, {right}")
    if end < len(pattern) and pattern[end] in "?+":
        end += 1
    return most, end


def _end_of_atom(pattern: str, place: int) -> int:
    """Where the character, escape or class at `place` ends."""
    if pattern[place] == "\\":
        named = re.compile(r"\\[pPxuo]\{[^}]{0,40}\}").match(pattern, place)
        return named.end() if named else place + 2
    if pattern[place] != "[":
        return place + 1
    depth, at = 0, place
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]" and not (pattern[at - 1] == "[" or pattern[at - 2 : at] == "[^"):
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    raise ValueError(f"the regular expression {shown(pattern)} has a class without an end")
