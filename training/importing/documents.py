"""Convert the exports of annotation tools to this project's data files."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from training.corpus.data import DataError
from training.corpus.recognise import FORMATS, recognise_file
from training.importing.brat import read_brat
from training.importing.columns import read_conll
from training.importing.docbin import read_spacy
from training.importing.doccano import read_doccano
from training.importing.draft import Draft, Reading
from training.importing.label_studio import read_label_studio
from training.importing.offsets import OffsetCheck
from training.importing.own import read_own
from training.importing.prodigy import read_prodigy
from training.importing.records import head_of, kind_of_records
from training.importing.tokens import read_gliner, read_huggingface
from training.importing.webanno import read_webanno


READERS: dict[str, Callable[[str, Reading], Iterator[Draft]]] = {
    "doccano": read_doccano,
    "label-studio": read_label_studio,
    "prodigy": read_prodigy,
    "brat": read_brat,
    "conll": read_conll,
    "spacy": read_spacy,
    "gliner": read_gliner,
    "huggingface": read_huggingface,
    "webanno": read_webanno,
    "sener": read_own,
}
TWICE = "entities were there twice; the copies were removed"
SAME = "the same id and text were there already: of several annotators the first counts"
BARE = "documents have no entity and teach that there is none: leave out those that nobody annotated"
SHOWN = 3  # reasons in a message


@dataclass
class Source:
    """An export that was read."""

    path: str
    kind: str
    documents: int = 0
    entities: int = 0


def import_documents(
    paths: list[str], kind: str | None, reading: Reading, max_misquoted: float, sources: list[Source]
) -> Iterator[dict]:
    """
    Yield records in this project's format. After the last one `sources` and `reading` are complete.

    Args:
        kind: the format of all exports, `None` to recognise it.
        max_misquoted: the largest share of quoted entities whose text may differ from the quote (they are left out).

    Raises:
        DataError: for an export that cannot be read or has no usable document, and for offsets in another unit.
    """
    checks: dict[str, OffsetCheck] = {}
    seen: set[bytes] = set()
    has_unit = False
    for path in _distinct(paths):
        source = Source(path, kind or kind_of(path))
        sources.append(source)
        check = checks.setdefault(source.kind, OffsetCheck(reading.offsets or "characters"))
        found = False
        for draft in READERS[source.kind](path, reading):
            key = hashlib.sha256(repr((draft.id, draft.text)).encode("utf-8", "surrogatepass")).digest()
            if key in seen:
                found = True
                reading.leave_out(draft.where, "document", SAME)
                continue
            seen.add(key)
            if not "".join(draft.text).strip():
                reading.leave_out(draft.where, "document", "the text is empty")
                continue
            has_unit = has_unit or draft.has_unit or source.kind == "webanno"
            entities = check.convert(draft, reading)
            kept = list(dict.fromkeys(entities))
            reading.remarks[TWICE] += len(entities) - len(kept)
            reading.remarks[BARE] += not kept
            source.documents += 1
            source.entities += len(kept)
            yield as_record(draft, kept)
        if not (source.documents or found):
            raise DataError(f"{path}: nothing in it can be used as {FORMATS[source.kind]}{_reasons(reading, path)}")
    warnings = [check.verdict(max_misquoted) for check in checks.values()]
    reading.warnings += [warning for warning in warnings if warning]
    if not any(source.entities for source in sources):
        raise DataError(f"{', '.join(paths)}: no entity in it{_reasons(reading)}")
    if reading.offsets and not has_unit:
        kinds = ", ".join(FORMATS[kind] for kind in checks)
        raise DataError(f"--offsets {reading.offsets}: the spans of {kinds} count words, or characters for certain: "
                        "leave the option out")  # fmt: skip


def _distinct(paths: list[str]) -> list[str]:
    """Remove repeated paths; of a brat pair given by both files, the .txt."""
    return [path for path in dict.fromkeys(paths)
            if not (path.endswith(".txt") and f"{path.removesuffix('.txt')}.ann" in paths)]  # fmt: skip


def kind_of(path: str) -> str:
    """The format of an export; raises `DataError` if it is not recognised."""
    try:
        kind = recognise_file(path)
    except (OSError, EOFError, zlib.error):
        head_of(path)  # raises a `DataError` with the reason
        raise
    if kind in ("json", "parquet"):
        kind = kind_of_records(path)
    if kind is None:
        raise DataError(f"{path}: its format is not recognised{_cure(path)}; known: {', '.join(FORMATS)} (--format)")
    return kind


def as_record(draft: Draft, entities: list[tuple[int, int, str]]) -> dict:
    if isinstance(draft.text, str):
        spans = [{"start": start, "end": end, "label": label} for start, end, label in entities]
        return {"id": draft.id, "text": draft.text, "entities": spans}
    words = draft.text
    spans = [[start, end, " ".join(words[start:end]), label] for start, end, label in entities]
    return {"doc_id": draft.id, "text": words, "entity": spans}


def _cure(path: str) -> str:
    """Advice, in brackets, for common files that cannot be imported."""
    try:
        head = head_of(path)
    except DataError:
        return " (a folder without .ann files: name its files)"
    if head.startswith(b"PK"):
        return " (a zip archive: unpack it, and name its files)"
    if head.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"<"):
        return " (XML: export JSON, from INCEpTION WebAnno TSV 3)"
    if path.endswith(".csv"):
        return " (CSV: export JSON)"
    return ""


def _reasons(reading: Reading, path: str = "") -> str:
    """The first documents and annotations that were left out, for a message."""
    lines = [f"{line} ({reason})" for reason, line in reading.left_out if line.startswith(path)]
    if not lines:
        return ""
    more = f"; and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else ""
    return f": left out: {'; '.join(lines[:SHOWN])}{more}"
