"""
Patterns of words for gold that begins or ends inside a word of the default one: what people meet are digits and
identifiers, Korean particles, Arabic prefixes.
"""

from collections import Counter
from collections.abc import Sequence

from modeling_sener.tokenization import JOINT, LETTER, UNSPACED, word_splitter
from training.corpus.data import Document


NUMBER = r"\p{Nd}++(?:[.,]\p{Nd}++)*+"
REST = r"\S\p{M}*+"
SMALL = rf"[{LETTER}&&[^\p{{Lu}}\p{{Nd}}_]]"
# "HTTPServer_v2" is HTTP, Server, _, v, 2.
IDENTIFIERS = rf"{NUMBER}|(?:\p{{Lu}}\p{{M}}*+)+(?!\p{{Ll}})|(?:\p{{Lu}}\p{{M}}*+)?{SMALL}++(?:(?:{JOINT}){SMALL}++)*+"
ARABIC, PREFIX = r"[\p{Arabic}&&\p{L}]", "[\u0648\u0641\u0628\u0643\u0644\u0633]"  # and, so, with, like, to, will
OUTSIDE = r"[^\p{L}\p{M}\p{N}_]"
# A word begins, or one or two prefixes of it are behind.
BEGIN = (rf"(?:(?<![\p{{L}}\p{{M}}\p{{N}}_])|(?<={OUTSIDE}{PREFIX})|(?<=\A{PREFIX})|(?<={OUTSIDE}{PREFIX}{PREFIX})"
         rf"|(?<=\A{PREFIX}{PREFIX}))")  # fmt: skip
# The article, then a single prefix, each before more letters.
PREFIXES = rf"{BEGIN}\u0627\u0644(?={ARABIC})|{BEGIN}{PREFIX}(?={ARABIC}{{2}})"


def words(own: str, excluded: str = "") -> str:
    """The default pattern, but with words of its `own` first, and without the class `excluded` inside of others."""
    letter = rf"[{LETTER}&&[^{excluded}]]" if excluded else LETTER
    return rf"{own}|{UNSPACED}\p{{M}}*+|{letter}++(?:(?:{JOINT}){letter}++)*+|{REST}"


HANGUL = r"\p{Hangul}\p{M}*+"
# Those that cut least come first.
PATTERNS = {
    "digits apart from letters": words(NUMBER, r"\p{Nd}"),
    "identifiers in parts: digits, capital letters, _": words(IDENTIFIERS, r"\p{Nd}\p{Lu}_"),
    "Arabic prefixes apart": words(PREFIXES),
    "Hangul in syllables": words(HANGUL, r"\p{Hangul}"),
    "identifiers in parts, Arabic prefixes apart, Hangul in syllables": words(
        rf"{HANGUL}|{PREFIXES}|{IDENTIFIERS}", r"\p{Hangul}\p{Nd}\p{Lu}_"
    ),
}
ENOUGH = 0.9  # share of the gold that a suggested pattern holds


def count_held(document: Document, spans: Sequence[tuple[int, int, str]]) -> Counter:
    """How many spans of a text, a string, begin and end with words of each of `PATTERNS`, by its name."""
    held: Counter = Counter()
    text = document.text.encode("utf-8", "replace").decode() if not document.text.isascii() else document.text
    for name, pattern in PATTERNS.items():
        places = [place for _, place in word_splitter(pattern).pre_tokenize_str(text)]
        starts, ends = {start for start, _ in places}, {end for _, end in places}
        held[name] = sum(start in starts and end in ends for start, end, _ in spans)
    return held


def suggestion(held: Counter, total: int) -> str | None:
    """The name of the pattern that cuts least among those that hold `ENOUGH` of `total` spans."""
    return next((name for name in PATTERNS if held[name] >= ENOUGH * total), None)
