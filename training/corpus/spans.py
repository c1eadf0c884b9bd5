"""Trim white space around spans: no entity begins or ends with it."""


def trim(text: str | list[str], start: int, end: int) -> tuple[int, int]:
    """
    Trim a span's white space (`str.strip`) on both sides: characters of a string, words of a list. A span of white
    space alone gives `start == end`.
    """
    while start < end and not text[start].strip():
        start += 1
    while start < end and not text[end - 1].strip():
        end -= 1
    return start, end
