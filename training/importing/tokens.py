"""Read records of tokens: GLiNER's training data (`tokenized_text`, `ner`), Hugging Face's `tokens` and `ner_tags`."""

from collections.abc import Iterator

from training.corpus.data import DataError
from training.corpus.recognise import is_triple, tag_field
from training.importing.columns import spans_of_tags
from training.importing.draft import Draft, Reading, Span, name_of
from training.importing.records import parquet_tag_names, read_records


def read_gliner(path: str, reading: Reading) -> Iterator[Draft]:
    """Read GLiNER's data, whose inclusive ends become exclusive."""
    for where, record in read_records(path):
        tokens = record.get("tokenized_text") if isinstance(record, dict) else None
        if not _are_words(tokens):
            reading.leave_out(where, "document", "no tokenized_text")
            continue
        items = record.get("ner")
        spans = []
        for number, item in enumerate(items if isinstance(items, list) else []):
            start, end, label = item if is_triple(item) else (None, None, None)
            end = end + 1 if isinstance(end, int) else end
            spans.append(Span(start, end, label, f"ner[{number}]"))
        yield Draft(name_of(record, where, "id"), tokens, where, spans)


def read_huggingface(path: str, reading: Reading) -> Iterator[Draft]:
    """Read tokens with tags: names, or numbers with names from the command line or the file; else `DataError`."""
    names = reading.tag_names
    for where, record in read_records(path):
        tokens = record.get("tokens") if isinstance(record, dict) else None
        field = tag_field(record) if isinstance(record, dict) else None
        if not _are_words(tokens) or field is None or len(record[field]) != len(tokens):
            reading.leave_out(where, "document", "no tokens with a tag each")
            continue
        tags = record[field]
        if any(isinstance(tag, int) for tag in tags):
            names = names or parquet_tag_names(path, field)
            tags = [_named(tag, names, f"{where}: {field}[{number}]") for number, tag in enumerate(tags)]
        yield Draft(name_of(record, where, "id"), tokens, where, spans_of_tags(tags, reading, where))


def _named(tag, names: list[str] | None, where: str):
    if not isinstance(tag, int) or isinstance(tag, bool):
        return tag
    if names is None:
        raise DataError(f"{where}: the tag is a number, and the file has no names for them: give them in their order, "
                        "for instance --tag_names O,B-PER,I-PER")  # fmt: skip
    if not 0 <= tag < len(names):
        raise DataError(f"{where}: tag {tag} has no name; there are {len(names)}: {', '.join(names)}")
    return names[tag]


def _are_words(tokens) -> bool:
    return isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
