"""
Label Studio's JSON and JSON-MIN: labelled spans of characters, of whatever control they are.

Of several annotations of a task one is taken: a ground truth, else the one that was changed last; none that was
cancelled or skipped, and no prediction. JSON-MIN has a record for each annotation: of those of one task and text the
first counts, which is the newest in Label Studio's own order.

Spans in HTML (`HyperText`) have XPaths for offsets. Their `globalOffsets` count the characters of the text without its
tags, so they are used where the text has none. Spans of dialogues (`Paragraphs`) count within one paragraph.
"""

import re
from collections import Counter
from collections.abc import Iterator

from training.data import DataError
from training.importing.draft import Draft, Reading, Span
from training.importing.recognise import labels_of
from training.importing.records import read_records


_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LINK = re.compile(r"(https?:/|s3:/|gs:/|azure-blob:/|/data)/\S+")
_OWN_FIELDS = {"created_at", "updated_at", "annotator", "annotation_id", "lead_time", "agreement", "id"}


def read_label_studio(path: str, reading: Reading) -> Iterator[Draft]:
    """The annotated tasks of an export; `DataError` where it does not tell which text was annotated."""
    for where, task in read_records(path):
        if not isinstance(task, dict):
            reading.leave_out(where, "document", "no task")
            continue
        if isinstance(task.get("data"), dict):
            fields, regions = task["data"], _chosen(task, where, reading)
        else:
            fields = {name: value for name, value in task.items() if name not in _OWN_FIELDS}
            regions = _minimal(task, reading)
        if regions is None:
            continue
        regions = _of_one_text(regions, where, reading)
        text = _text_of(fields, regions, where)
        if text is None or _LINK.fullmatch(text.strip()):
            reading.leave_out(where, "document", "no text" if text is None else "a link in place of the text")
            continue
        spans = list(_spans(regions, text, where, reading))
        yield Draft(str(task.get("id", where)), text, where, spans, has_unit=True)


def _chosen(task: dict, where: str, reading: Reading) -> list[tuple[str, dict]] | None:
    """The regions of the annotation that counts, each with the name of the text it is of; `None` where none does."""
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
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            kind = result.get("type") if isinstance(result, dict) else None
            reading.ignored[f"results of type {kind}"] += 1
        elif "start" not in value and "globalOffsets" not in value:
            reading.ignored[f"results of type {result.get('type')}"] += 1
        elif not labels_of(value) and not str(result.get("type")).endswith("labels"):
            reading.ignored[f"results of type {result.get('type')}"] += 1
        else:
            regions.append((str(result.get("to_name")), value))
    return regions


def _minimal(task: dict, reading: Reading) -> list[tuple[str, dict]]:
    """The regions of a JSON-MIN record, in whichever fields they are."""
    regions = []
    for name, value in task.items():
        for item in value if isinstance(value, list) else []:
            if isinstance(item, dict) and ("start" in item or "globalOffsets" in item) and labels_of(item):
                regions.append(("", item))
            elif isinstance(item, dict):
                reading.ignored[f"results of {name}"] += 1
    return regions


def _of_one_text(regions: list[tuple[str, dict]], where: str, reading: Reading) -> list[tuple[str, dict]]:
    """The regions of that text of the task which has most of them; a task is one document."""
    names = Counter(name for name, _ in regions)
    most = max(names, key=names.get, default=None)
    for number, (name, region) in enumerate(regions):
        if name != most:
            reading.leave_out(where, f"region {number + 1} of {name}: {region.get('text')!r}",
                              f"marked in another text of the task than {most}")  # fmt: skip
    return [(name, region) for name, region in regions if name == most]


def _text_of(fields: dict, regions: list[tuple[str, dict]], where: str) -> str | None:
    """The annotated text: the field of the regions' name, `text`, the only one, or the one that holds the quotes."""
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    for name in (*(name for name, _ in regions[:1]), "text"):
        if name in texts:
            return texts[name]
    quotes = [region["text"] for _, region in regions if isinstance(region.get("text"), str)]
    held = {name: sum(quote in value for quote in quotes) for name, value in texts.items()}
    best = [name for name in texts if held[name] == max(held.values())]
    if len(best) > 1:
        names = ", ".join(best)
        raise DataError(f'{where}: data: which of the fields {names} is the annotated text? Call that one "text"')
    return texts[best[0]] if best else None


def _spans(regions: list[tuple[str, dict]], text: str, where: str, reading: Reading) -> Iterator[Span]:
    is_html = _TAG.search(text) is not None
    for number, (_, region) in enumerate(regions):
        name, quote = f"region {number + 1}", region.get("text")
        quote = quote if isinstance(quote, str) and quote.strip() else None
        start, end, offsets = region.get("start"), region.get("end"), region.get("globalOffsets")
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
