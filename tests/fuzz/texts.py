"""
Make hostile texts by category. All of them follow from a seed: `batch(seed, number)` gives the same texts again.
"""

import unicodedata
from random import Random


# SPACES: the characters of the word pattern's \s (Unicode's White_Space). NO_SPACES: characters that only look like
# spaces, or are named so.
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
NO_SPACES = "\x1c\x1d\x1e\x1f\u180e\u200b\u2060\u2800\u3164\ufeff"
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ZERO_WIDTH = "\u00ad\u034f\u200b\u200c\u200d\u2060\u2061\u2064\u206f\ufe00\ufe0f\ufeff\U000e0001\U000e0061\U000e0100"
MARKS = "\u0300\u0301\u0338\u0345\u0488\u05b0\u0651\u093c\u0e31\u0e38\u20dd\u3099\ua670\ufe20\U0001d165\U0001e8d0"
DIGITS = "0123456789٠٣٩०९๑๙０９𝟎𝟗①½Ⅷ²"
PUNCTUATION = "".join(c for c in map(chr, range(0x10000)) if unicodedata.category(c)[0] in "PS")
TOKENS = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "<s>", "</s>", "<mask>", "<pad>", "<unk>", "<|endoftext|>"]
TOKENS += ["##", "##ing", "▁", "▁the", "Ġ", "Ġthe", "Ċ", "<0x0A>"]
HTML = [
    "<p>", "</p>", "<b", ">", "<script>alert('x')</script>", "<!--", "-->", "&amp;", "&#x202e;", "&nbsp", "<![CDATA[",
    '<img src=x onerror="alert(1)">', "</textarea>", "<a href='javascript:0'>", "\r\n", "{{7*7}}", "text", "%00",
]  # fmt: skip
EMOJI = [
    "👩‍💻", "👨‍👩‍👧‍👦", "🇫🇷", "🇫", "👍🏽", "🏽", "❤️", "❤",
    "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "☺︎", "\u200d", "\ufe0f",
]  # fmt: skip
LETTERS = "aZéßŁяΩשعकไທខ漢ひカーｰ한ﬁＡİıǅﷺ𝒜𐍈ª"
HEADS = [
    b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"%PDF-1.7\n%\xe2\xe3",
    b"\x7fELF", b"\xff\xfe", b"\xef\xbb\xbf",
]  # fmt: skip
TRUNCATED = [b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"plain text "]


def batch(seed: int, number: int, size: int = 64) -> list[tuple[str, str]]:
    """Draw `size` pairs of category and text."""
    random = Random(f"{seed} {number}")
    names = random.choices(list(CATEGORIES), k=size)
    return [(name, CATEGORIES[name](random)) for name in names]


def length(random: Random, most: int) -> int:
    """Draw a length from 0 to `most`, each order of magnitude equally likely."""
    return int(2 ** random.uniform(0, most.bit_length() - 1)) - 1


def drawn(random: Random, pool, most: int) -> str:
    """Draw up to `most` strings of the pool, and join them."""
    return "".join(random.choices(pool, k=length(random, most)))


def any_character(random: Random) -> str:
    """Draw a code point from any plane, each equally likely; surrogates and unassigned ones, too."""
    return chr(random.randrange(17) << 16 | random.randrange(0x10000))


def planes(random: Random) -> str:
    return "".join(any_character(random) for _ in range(length(random, 256)))


def scripts(random: Random) -> str:
    first = random.randrange(0, 0x32000, 0x80)
    return drawn(random, [*map(chr, range(first, first + 0x80)), *" " * 16, *".,-1" * 2], 256)


def surrogates(random: Random) -> str:
    halves = [chr(random.randrange(0xD800, 0xE000)) for _ in range(8)]
    return drawn(random, [*halves, "\ud83d\ude00", "\ude00\ud83d", *"ab 漢1.\u0301"], 128)


def invisible(random: Random) -> str:
    return drawn(random, BIDIRECTIONAL + ZERO_WIDTH + "ab12.,-אب漢 ", 256)


def marks(random: Random) -> str:
    parts = [random.choice(LETTERS + " .1\u200d") + drawn(random, MARKS, 2048) for _ in range(1 + length(random, 8))]
    return "".join(parts)


def html(random: Random) -> str:
    return drawn(random, HTML, 64)


def binary(random: Random) -> bytes:
    rest = b"".join(random.choice([random.randbytes(4), random.choice(TRUNCATED)]) for _ in range(length(random, 64)))
    return random.choice(HEADS) + rest


def binary_as_latin_1(random: Random) -> str:
    return binary(random).decode("latin-1")


def binary_as_utf_8(random: Random) -> str:
    return binary(random).decode("utf-8", random.choice(["surrogateescape", "replace", "backslashreplace"]))


def one_giant_word(random: Random) -> str:
    return drawn(random, random.choice([LETTERS[:14], "a", "ab\u00ad", "1.", "a\u200d", "_9", "कि"]), 4096)


def tiny_words(random: Random) -> str:
    return " ".join(random.choices(LETTERS + "12.,", k=length(random, 1024)))


def only_punctuation(random: Random) -> str:
    return drawn(random, PUNCTUATION, 256)


def only_whitespace(random: Random) -> str:
    return drawn(random, SPACES + (NO_SPACES if random.random() < 0.5 else ""), 256)


def one_character(random: Random) -> str:
    return random.choice([any_character(random), random.choice(LETTERS + SPACES + MARKS + "\0.")]) * length(
        random, 4096
    )


def special_tokens(random: Random) -> str:
    return drawn(random, [*TOKENS, " ", "we"], 64)


def controls(random: Random) -> str:
    return drawn(random, [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\0\0\0\0", *"ab 1."], 128)


def numbers(random: Random) -> str:
    return drawn(random, DIGITS + "....,,,, -_a\u200d\u00ad\u0301", 128)


def emoji(random: Random) -> str:
    return drawn(random, [*EMOJI, " ", "x"], 64)


def mixture(random: Random) -> str:
    """Join slices of texts of other categories."""
    parts = []
    for _ in range(random.randrange(2, 6)):
        text = random.choice(PLAIN)(random)
        first = random.randrange(len(text) + 1)
        parts.append(text[first : first + length(random, 64)])
    return random.choice(["", " ", "\u200d", "."]).join(parts)


def mutation(random: Random) -> str:
    """Change a valid sentence, or a text of another category, in a few places."""
    sentence = "We train ResNet-50 on ImageNet and report 93.5 % top-1 accuracy (see Table 2, naïve café 漢字)."
    text = random.choice([sentence, random.choice(PLAIN)(random)[:500]])
    for _ in range(random.randrange(1, 9)):
        first = random.randrange(len(text) + 1)
        last = min(len(text), first + random.randrange(8))
        middle = text[first:last]
        changed = random.choice([
            "", middle * 2, middle[::-1], middle.upper(), middle.casefold(), any_character(random),
            unicodedata.normalize(random.choice(["NFD", "NFC", "NFKD", "NFKC"]), middle),
            random.choice(SPACES + NO_SPACES + MARKS + ZERO_WIDTH), random.choice(TOKENS), middle + " ",
        ])  # fmt: skip
        text = text[:first] + changed + text[last:]
    return text


PLAIN = [
    planes, scripts, surrogates, invisible, marks, html, binary_as_latin_1, binary_as_utf_8, one_giant_word,
    tiny_words, only_punctuation, only_whitespace, one_character, special_tokens, controls, numbers, emoji,
]  # fmt: skip
CATEGORIES = {function.__name__.replace("_", " "): function for function in [*PLAIN, mixture, mutation]}

# Patterns that could cost more than linear time or memory, and the number of characters up to which they are repeated.
LONG = {
    "one letter": ("a", 5_000_000),
    "one ideograph": ("漢", 1_000_000),
    "one mark": ("\u0301", 5_000_000),
    "one emoji": ("😀", 1_000_000),
    "NUL": ("\0", 1_000_000),
    "lone surrogates": ("\ud800", 1_000_000),
    "spaces": (" \u3000", 5_000_000),
    "punctuation": ("?!", 1_000_000),
    "a million tiny words": ("a ", 2_000_000),
    "a number": ("1.", 2_000_000),
    "joined letters": ("a\u200d", 5_000_000),
    "half a joint": ("a\u00ad\u00ad ", 2_000_000),
    "marked letters": ("e\u0323\u0301", 5_000_000),
    "special tokens": ("[CLS] ", 2_000_000),
    "what NFKC expands": ("ﷺ", 1_000_000),
    "sentences": ("We train ResNet-50 on ImageNet and report 93.5 % top-1 accuracy. ", 5_000_000),
}


def long_text(name: str, size: int) -> str:
    """`size` characters of the pattern of this name in `LONG`."""
    unit, _ = LONG[name]
    return (unit * (size // len(unit) + 1))[:size]
