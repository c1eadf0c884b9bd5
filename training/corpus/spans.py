"""White space around a span: no entity begins or ends with it, whatever the span was made with."""


def trim(text: str | list[str], start: int, end: int) -> tuple[int, int]:
    """
    `(start, end)` without the white space that the span begins and ends with, as Python counts it: characters of a
    string, words of a list (an empty word is one). What is white space alone gives `start == end`.
    """
    while start < end and not text[start].strip():
        start += 1
    while start < end and not text[end - 1].strip():
        end -= 1
    return start, end
