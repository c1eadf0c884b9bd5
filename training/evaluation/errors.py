"""
Count a model's errors by kind, and list those to read first.

K entities, in the order and with the meaning of `scoring.Outcomes`.
"""

from collections.abc import Sequence

import numpy as np

from training.corpus.data import Document
from training.evaluation.scoring import FN, FP, TP, Entity, Outcomes


KINDS = ("other bounds", "other label", "other bounds and label", "nothing there", "beyond window")
BEYOND = len(KINDS) - 1
LISTED = 10  # of the spurious, and of the missed entities
SHOWN, CONTEXT = 240, 60  # the most characters of an entity, and of the text on either side of it


def find_errors(
    documents: Sequence[Document], outcomes: Outcomes, predicted: Sequence[dict[Entity, float]], beyond: np.ndarray
) -> dict:
    """
    Compare spurious entities with gold, and missed ones with the predictions.

    Args:
        predicted: the score of each predicted entity, by document.
        beyond: *Shape:* (K,), whether an entity is wider than the model's window.

    Returns:
        `kinds`: the number of `spurious` and of `missed` entities of each of `KINDS` (see `kinds_of`). `spurious` and
        `missed`: the `LISTED` first of them (see `repeated`), by falling score and by falling count; of equal ones,
        the longest first. Missed entities that are wider than the window are counted, but not listed.
    """
    kind = kinds_of(outcomes, beyond)
    columns = (outcomes.document, outcomes.start, outcomes.end, outcomes.label)
    entities = [(document, (start, end, outcomes.labels[label])) for document, start, end, label
                in zip(*(column.tolist() for column in columns), strict=True)]  # fmt: skip
    result: dict = {"kinds": {}}
    for name, outcome in (("spurious", FP), ("missed", FN)):
        place = np.flatnonzero(outcomes.outcome == outcome)
        counts = np.bincount(kind[place], minlength=len(KINDS)).tolist()
        result["kinds"][name] = dict(zip(KINDS, counts, strict=True))
        rows = []
        for members in repeated(documents, entities, place[kind[place] != BEYOND].tolist()):
            document, entity = entities[members[0]]
            row = {"label": entity[2], **in_context(documents[document], entity), "kind": KINDS[kind[members[0]]],
                   "count": len(members)}  # fmt: skip
            if outcome == FP:
                row["score"] = max(predicted[own][entity] for own, entity in (entities[i] for i in members))
            rows.append((-row["score"] if outcome == FP else -len(members), entity[0] - entity[1], row))
        result[name] = [row for *_, row in sorted(rows, key=lambda row: row[:2])[:LISTED]]
    return result


def kinds_of(outcomes: Outcomes, beyond: np.ndarray) -> np.ndarray:
    """
    The kind of each wrong entity, as an index of `KINDS`: *Shape:* (K,); for a right one, -1.

    A missed entity wider than the window is "beyond window". Any other is compared with gold if it is spurious, with
    the predictions if it is missed. If it overlaps one of its label, it has "other bounds"; else if it has the span of
    one, the "other label"; else if it overlaps one, "other bounds and label".
    """
    kind = np.full_like(outcomes.outcome, -1)
    edges = np.searchsorted(outcomes.document, np.arange(outcomes.documents + 1)).tolist()
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        start, end, label, outcome = (
            column[a:b] for column in (outcomes.start, outcomes.end, outcomes.label, outcomes.outcome)
        )
        for i in np.flatnonzero(outcome != TP):
            other = outcome != outcome[i]
            overlaps = other & (start < end[i]) & (end > start[i])
            found = ((overlaps & (label == label[i])).any(), (other & (start == start[i]) & (end == end[i])).any(),
                     overlaps.any(), True)  # fmt: skip
            kind[a + i] = found.index(True)
    kind[beyond & (outcomes.outcome == FN)] = BEYOND
    return kind


def repeated(documents: Sequence[Document], entities: list[tuple[int, Entity]], place: list[int]) -> list[list[int]]:
    """Group entities (document, entity) at `place` that have one label and, case and white space aside, one text."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in place:
        document, (start, end, label) = entities[i]
        groups.setdefault((label, as_string(documents[document].text[start:end]).casefold()), []).append(i)
    return list(groups.values())


def in_context(document: Document, entity: Entity) -> dict:
    """`id` of the document, `start`, `end`, and `before`, `text` and `after`, clipped with an ellipsis."""
    start, end, _ = entity
    before, text, after = (as_string(part) for part in (
        document.text[max(0, start - CONTEXT) : start], document.text[start:end], document.text[end : end + CONTEXT],
    ))  # fmt: skip
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
    return {"id": document.id, "start": start, "end": end, "before": before[-CONTEXT:], "text": text,
            "after": after[:CONTEXT]}  # fmt: skip


def as_string(text: str | list[str]) -> str:
    """A text, or words joined by a space, on one line."""
    return " ".join((text if isinstance(text, str) else " ".join(text)).split())
