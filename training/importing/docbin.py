"""Read spaCy's training data: a `DocBin` (`.spacy`), or pairs (text, {"entities": [(start, end, label), ...]})."""

import zlib
from collections.abc import Iterator

from training.common.cli import first_line
from training.corpus.data import DataError
from training.corpus.recognise import recognise, recognise_head
from training.importing.doccano import span_of
from training.importing.draft import Draft, Reading, Span
from training.importing.records import MAX_WHOLE, head_of, read_records, read_whole


def read_spacy(path: str, reading: Reading) -> Iterator[Draft]:
    if recognise_head(head_of(path)) == "spacy":
        yield from _read_docbin(path, reading)
        return
    for where, record in read_records(path):
        pairs = [record]
        if isinstance(record, dict) and isinstance(record.get("annotations"), list):
            pairs = record["annotations"]  # one object with all pairs, beside `classes`
        for number, pair in enumerate(pairs):
            place = where if pair is record else f"{where} annotations[{number}]"
            if recognise(pair) != "spacy":
                reading.leave_out(place, "document", "no pair of a text and its entities")
                continue
            text, gold = pair
            items = gold["entities"] if isinstance(gold["entities"], list) else []
            spans = [span_of(item, f"entities[{number}]") for number, item in enumerate(items)]
            yield Draft(place, text, place, spans, has_unit=True)


def _read_docbin(path: str, reading: Reading) -> Iterator[Draft]:
    """Read a `DocBin` with spaCy: texts with `doc.ents` and all groups of `doc.spans`."""
    try:
        import spacy
        from spacy.tokens import DocBin
    except ImportError as error:
        raise DataError(f"{path}: spaCy reads this file: pip install -e '.[spacy]'") from error
    content = read_whole(path)
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(content, MAX_WHOLE)
        if unpacker.unconsumed_tail:
            raise DataError(f"{path}: more than {MAX_WHOLE:,} bytes when unpacked: split it")
        for number, doc in enumerate(DocBin().from_bytes(content).get_docs(spacy.blank("xx").vocab), start=1):
            where, spans = f"{path} doc {number}", []
            groups = {"ents": doc.ents, **{f"spans[{name}]": group for name, group in doc.spans.items()}}
            for name, group in groups.items():
                spans += [Span(span.start_char, span.end_char, span.label_, f"{name} {count + 1}")
                          for count, span in enumerate(group)]  # fmt: skip
                reading.remarks[f"entities are read from {name}"] += len(group)
            yield Draft(where, doc.text, where, spans)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AssertionError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a DocBin ({first_line(error)})") from error
