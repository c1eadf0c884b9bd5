"""
Escape the characters of labels that a format cannot hold: `License Grant` becomes `License_x0020_Grant`.

A character becomes `_x`, its code point in four to six upper-case hexadecimal digits, and `_`, as in names of XML
elements (ISO/IEC 9075-14). Such a name is valid in brat, whose types consist of letters, digits, - and _.
"""

import re


# The characters that labels cannot have, by format.
NOT_IN = {"brat": "[^A-Za-z0-9_-]", "conll": r"\s"}
_ESCAPE = re.compile("_x((?!D[89A-F])[0-9A-F]{4}|[0-9A-F]{5}|10[0-9A-F]{4})_")  # no surrogates: UTF-8 has none


def escape_label(label: str, form: str) -> str:
    """Escape the characters that `form`, a key of `NOT_IN`, cannot hold, and underscores that begin an escape."""
    return re.sub(f"{NOT_IN[form]}|_(?=x[0-9A-F]{{4}})", lambda match: f"_x{ord(match[0]):04X}_", label)


def unescape_label(label: str) -> str:
    """Undo `escape_label` for any format; a label without an escape stays as it is."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), label)
