"""
Read Prodigy's JSON Lines (`prodigy db-out`): `text`, `spans` of {"start", "end", "label"}, `answer`.

Records that were not accepted are left out. If a text (`_input_hash`) was accepted several times, by several people or
after a change of mind, the last record is used. Yes-or-no questions (`_view_id` "ner", of `ner.teach`) show one span
at a time: if the last record is one, the accepted spans of the text are put together.
"""

from collections.abc import Iterator

from training.importing.draft import Draft, Reading, Span, name_of
from training.importing.records import read_records


QUESTIONS = "texts come from yes-or-no questions (_view_id ner): what nobody was asked about counts as no entity"


def read_prodigy(path: str, reading: Reading) -> Iterator[Draft]:
    last, accepted = _last_accepted(path)
    for where, record in read_records(path):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            reading.leave_out(where, "document", "no text")
            continue
        answer, key, is_question = record.get("answer", "accept"), _key(record, where), _is_question(record)
        if answer != "accept" and is_question:
            reading.ignored["questions that were not accepted"] += 1
            if key not in accepted:
                reading.leave_out(where, "document", "a question that was not accepted")
        elif answer != "accept":
            reading.leave_out(where, "document", f"the answer is {answer}")
        elif last[key] != (where, is_question):
            place, is_joined = last[key]
            if not (is_question and is_joined):  # else its spans are added to the last record of this text
                reading.leave_out(where, f"document, see {place}", "the same text was accepted again further down")
        else:
            reading.remarks[QUESTIONS] += is_question
            spans = accepted[key] if is_question else list(_spans_of_record(record))
            yield Draft(name_of(record, where, "_input_hash", "id"), record["text"], where, spans, has_unit=True)


def _last_accepted(path: str) -> tuple[dict, dict]:
    """Text key -> where it was accepted last, and if as a question; -> all spans from its accepted questions."""
    last, accepted = {}, {}
    for where, record in read_records(path):
        if isinstance(record, dict) and record.get("answer", "accept") == "accept":
            key = _key(record, where)
            last[key] = where, _is_question(record)
            if _is_question(record):
                accepted.setdefault(key, []).extend(_spans_of_record(record))
    return last, accepted


def _is_question(record: dict) -> bool:
    return record.get("_view_id") == "ner"


def _key(record: dict, where: str):
    key = record.get("_input_hash")
    return key if isinstance(key, (int, str)) else where


def _spans_of_record(record: dict) -> Iterator[Span]:
    spans, tokens = record.get("spans"), record.get("tokens")
    for number, item in enumerate(spans if isinstance(spans, list) else []):
        name = f"spans[{number}]"
        if isinstance(item, dict):
            quote = item.get("text") if isinstance(item.get("text"), str) else _token_text(tokens, item)
            yield Span(item.get("start"), item.get("end"), item.get("label"), name, quote)
        else:
            yield Span(None, None, None, name)


def _token_text(tokens, item: dict) -> str | None:
    """The text of the tokens from `token_start` to `token_end` (inclusive); `None` without tokens."""
    try:
        first, last = item["token_start"], item["token_end"]
        if not 0 <= first <= last < len(tokens):
            return None
        return "".join(token["text"] for token in tokens[first : last + 1]) or None
    except (KeyError, TypeError):
        return None
