"""
Read Label Studio's JSON and JSON-MIN: labelled spans of characters, from any control.

One annotation of a task is used: a ground truth, else the one that was changed last. Cancelled and skipped annotations
and predictions are not used. JSON-MIN has a record for each annotation: the first record of a task and text is used,
which is the newest in Label Studio's own order.

Spans in HTML (`HyperText`) have XPaths for offsets. Their `globalOffsets` count the characters of the text without its
tags, so they are used only if the text has no tags. Offsets of dialogues (`Paragraphs`) count within one paragraph.
"""

import re
from collections import Counter
from collections.abc import Iterator

from training.corpus.data import DataError
from training.corpus.recognise import labels_of
from training.importing.draft import Draft, Reading, Span, name_of
from training.importing.records import read_records


_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LINK = re.compile(r"(https?:/|s3:/|gs:/|azure-blob:/|/data)/\S+")
_OWN_FIELDS = {"created_at", "updated_at", "annotator", "annotation_id", "lead_time", "agreement", "id"}


def read_label_studio(path: str, reading: Reading) -> Iterator[Draft]:
    """Read the annotated tasks of an export; `DataError` if the annotated text field is ambiguous."""
    field = _text_field(path)
    for where, task in read_records(path):
        regions = _regions(task, where, reading)
        if regions is None:
            continue
        text = _fields(task).get(field)
        if not isinstance(text, str) or _LINK.fullmatch(text.strip()):
            reason = "a link in place of the text" if isinstance(text, str) else f"no text {field}"
            reading.leave_out(where, "document", reason)
            continue
        others = {name for name, value in _fields(task).items() if isinstance(value, str)} - {field}
        spans = list(_spans_of_regions(regions, text, others, where, reading))
        yield Draft(name_of(task, where, "id"), text, where, spans, has_unit=True)


def _fields(task: dict) -> dict:
    """The data fields of a task; in JSON-MIN these include the annotations."""
    if isinstance(task.get("data"), dict):
        return task["data"]
    return {name: value for name, value in task.items() if name not in _OWN_FIELDS}


def _text_field(path: str) -> str:
    """The text field of all tasks: it contains the quotes of the regions; ties go to a field that regions name."""
    held, named, texts = Counter(), set(), set()
    for where, task in read_records(path):
        fields = _fields(task) if isinstance(task, dict) else {}
        strings = {name: value for name, value in fields.items() if isinstance(value, str)}
        texts.update(strings)
        for of, region in _regions(task, where, Reading()) or ():
            named.add(of)
            quote = region.get("text")
            held.update(name for name, value in strings.items() if isinstance(quote, str) and quote in value)
    scores = {name: (held[name], name in named, name == "text") for name in sorted(texts)}
    best = [name for name, score in scores.items() if score == max(scores.values())]
    if len(best) > 1:
        raise DataError(f'{path}: which of the fields {", ".join(best)} is the annotated text? Call that one "text"')
    return best[0] if best else "text"


def _regions(task, where: str, reading: Reading) -> list[tuple[str, dict]] | None:
    """The labelled spans of a task, each with the name of its text field; `None` if the task is left out."""
    if not isinstance(task, dict):
        reading.leave_out(where, "document", "no task")
        return None
    return _chosen(task, where, reading) if isinstance(task.get("data"), dict) else _minimal(task, reading)


def _chosen(task: dict, where: str, reading: Reading) -> list[tuple[str, dict]] | None:
    """The regions of the annotation to use, each with the name of its text field; `None` if there is none."""
    given = task.get("annotations", task.get("completions"))
    annotations = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    open_ones = [item for item in annotations if not (item.get("was_cancelled") or item.get("skipped"))]
    if len(open_ones) < len(annotations):
        reading.ignored["cancelled annotations"] += len(annotations) - len(open_ones)
    if not open_ones:
        reading.leave_out(where, "document", "cancelled by the annotator" if annotations else "not annotated")
        return None
    reading.ignored["annotations of tasks that have a later one, or a ground truth"] += len(open_ones) - 1
    best = max(open_ones, key=lambda item: (bool(item.get("ground_truth")),
                                            str(item.get("updated_at") or item.get("created_at") or "")))  # fmt: skip
    results, regions = best.get("result"), []
    for result in results if isinstance(results, list) else []:
        result = result if isinstance(result, dict) else {}
        value, kind = result.get("value"), str(result.get("type"))
        has_offsets = isinstance(value, dict) and ("start" in value or "globalOffsets" in value)
        if has_offsets and (labels_of(value) or kind.endswith("labels")):
            regions.append((str(result.get("to_name")), value))
        else:
            reading.ignored[f"results of type {kind}"] += 1
    return regions


def _minimal(task: dict, reading: Reading) -> list[tuple[str, dict]]:
    """The regions of a JSON-MIN record, from all its fields."""
    regions = []
    for name, value in task.items():
        for item in value if isinstance(value, list) else []:
            if isinstance(item, dict) and ("start" in item or "globalOffsets" in item) and labels_of(item):
                regions.append(("", item))
            elif isinstance(item, dict):
                reading.ignored[f"results of {name}"] += 1
    return regions


def _spans_of_regions(
    regions: list[tuple[str, dict]], text: str, others: set[str], where: str, reading: Reading
) -> Iterator[Span]:
    """Yield the regions that are spans of `text`; leave out those of the `others`, the task's other text fields."""
    is_html = _TAG.search(text) is not None
    for number, (of, region) in enumerate(regions):
        name, quote = f"region {number + 1}", region.get("text")
        quote = quote if isinstance(quote, str) and quote.strip() else None
        start, end, offsets = region.get("start"), region.get("end"), region.get("globalOffsets")
        if of in others:
            reading.leave_out(where, f"{name}: {quote!r}", f"marked in another text of the task: {of}")
            continue
        if isinstance(start, str):
            if not start.startswith("/"):
                reading.leave_out(where, f"{name}: {quote!r}", "marked in a dialogue (Paragraphs), not in a text")
                continue
            if is_html or not isinstance(offsets, dict):
                reason = "marked in HTML, without offsets in its source: annotate plain text (Text)"
                reading.leave_out(where, f"{name}: {quote!r}", reason)
                continue
            start, end = offsets.get("start"), offsets.get("end")
        labels = labels_of(region)
        if not labels:
            reading.leave_out(where, f"{name}: {quote!r}", "no label")
        for label in labels:
            yield Span(start, end, label, name, quote)
