"""
Read doccano's JSON Lines, and records in the same form.

`label` (or `labels`, `entities`): [[start, end, label], ...]. The relation form, and old exports (`annotations`):
`entities`: [{"id", "label", "start_offset", "end_offset"}, ...]. Offsets count UTF-16 code units, as browsers do, or
grapheme clusters if the project is set so (doccano issue 2290). There are no quotes.
"""

from collections.abc import Iterator

from training.corpus.recognise import is_triple
from training.importing.draft import Draft, Reading, Span, name_of
from training.importing.records import read_records


def read_doccano(path: str, reading: Reading) -> Iterator[Draft]:
    """Read the documents of an export. Relations, comments and labels of whole texts are only counted."""
    for where, record in read_records(path):
        text = record.get("text", record.get("data")) if isinstance(record, dict) else None
        if not isinstance(text, str):
            reading.leave_out(where, "document", "no text")
            continue
        spans, has_field = [], False
        for name in ("label", "labels", "entities", "annotations"):
            items = record.get(name)
            if not isinstance(items, list):
                continue
            has_field = True
            for number, item in enumerate(items):
                if isinstance(item, str):
                    reading.ignored["labels of whole texts"] += 1
                else:
                    spans.append(span_of(item, f"{name}[{number}]"))
        if not has_field:
            reading.leave_out(where, "document", "no list of labels")
            continue
        for name, what in (("relations", "relations"), ("Comments", "comments"), ("cats", "labels of whole texts")):
            reading.ignored[what] += len(record[name]) if isinstance(record.get(name), list) else 0
        yield Draft(name_of(record, where, "id"), text, where, spans, has_unit=True)


def span_of(item, name: str) -> Span:
    """Parse [start, end, label] or an object with offsets; missing fields become `None`."""
    if is_triple(item):
        return Span(*item, name)
    if not isinstance(item, dict):
        return Span(None, None, None, name)
    return Span(item.get("start_offset"), item.get("end_offset"), item.get("label"), name)
