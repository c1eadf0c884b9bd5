"""Read this project's own raw text or words, for instance to convert offsets to characters."""

from collections.abc import Iterator

from training.importing.draft import Draft, Reading, Span, name_of
from training.importing.records import read_records


def read_own(path: str, reading: Reading) -> Iterator[Draft]:
    for where, record in read_records(path):
        text = record.get("text") if isinstance(record, dict) else None
        is_split = isinstance(text, list) and all(isinstance(word, str) for word in text)
        if not (is_split or isinstance(text, str)):
            reading.leave_out(where, "document", "no text")
            continue
        field = "entity" if is_split else "entities"
        items = record.get(field)
        if not isinstance(items, list):
            reading.leave_out(where, "document", f"no list {field}")
            continue
        spans = [(_word_span if is_split else _character_span)(item, f"{field}[{number}]")
                 for number, item in enumerate(items)]  # fmt: skip
        yield Draft(name_of(record, where, "id", "doc_id"), text, where, spans, has_unit=not is_split)


def _word_span(item, name: str) -> Span:
    if isinstance(item, list) and len(item) == 4:
        return Span(item[0], item[1], item[3], name)
    return Span(None, None, None, name)


def _character_span(item, name: str) -> Span:
    item = item if isinstance(item, dict) else {}
    quote = item.get("text") if isinstance(item.get("text"), str) else None
    return Span(item.get("start"), item.get("end"), item.get("label"), name, quote)
