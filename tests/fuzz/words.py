"""Reference for the word pattern: split a text into words in a loop over its characters."""

from functools import cache

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from .texts import SPACES


JOINERS = "\u00ad\u200c\u200d\u2060"


@cache
def _class(pattern: str) -> Split:
    return Split(Regex(pattern), behavior="removed", invert=True)


@cache
def kind(character: str) -> str:
    """
    "space", "unspaced" (a letter of a script without spaces), "mark", "digit", "letter" (or number or _) or "other".

    Matches single characters with tokenizers' regular expressions: Python's tables have another version of Unicode.
    """
    if character in SPACES:
        return "space"
    if "\ud800" <= character <= "\udfff":
        return "other"
    scripts = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ーｰ]"
    is_letter = bool(_class(r"[\p{L}\p{Nl}]").pre_tokenize_str(character))
    if is_letter and _class(scripts).pre_tokenize_str(character):
        return "unspaced"
    for name, pattern in (("mark", r"\p{M}"), ("digit", r"\p{Nd}"), ("letter", r"[\p{L}\p{N}_]")):
        if _class(pattern).pre_tokenize_str(character):
            return name
    return "other"


def words(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word."""
    kinds = [kind(character) for character in text]
    found, place = [], 0
    while place < len(text):
        start = place
        if kinds[start] == "space":
            place += 1
            continue
        if kinds[start] in ("letter", "mark", "digit"):
            place = end_of_letters(kinds, start)
            while (after := end_of_joint(text, kinds, place)) is not None:
                place = end_of_letters(kinds, after)
        else:
            place += 1
            while place < len(text) and kinds[place] == "mark":
                place += 1
        found.append((start, place))
    return found


def end_of_letters(kinds: list[str], place: int) -> int:
    while place < len(kinds) and kinds[place] in ("letter", "mark", "digit"):
        place += 1
    return place


def end_of_joint(text: str, kinds: list[str], place: int) -> int | None:
    """
    If joiners, or a point or comma between digits, connect the letter before `place` to a later one: the place of that
    one; else `None`.
    """
    after = place
    while after < len(text) and text[after] in JOINERS:
        after += 1
    if after > place and after < len(text) and kinds[after] in ("letter", "mark", "digit"):
        return after
    if (
        text[place : place + 1] in (".", ",")
        and kinds[place - 1] == "digit"
        and kinds[place + 1 : place + 2] == ["digit"]
    ):
        return place + 1
    return None
