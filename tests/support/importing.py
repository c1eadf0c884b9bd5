"""Run imports as a user does; the text and entities that all files in data/exports contain."""

import json
from pathlib import Path

from training import import_data


EXPORTS = Path(__file__).parents[1] / "data" / "exports"
TEXT = "Ada Lovelace met Charles Babbage in London .\nShe admired the Analytical Engine ."
REPLY = "Nothing is marked here ."
NESTED = [("Ada Lovelace", "Person"), ("Charles Babbage", "Person"), ("Babbage", "Surname"), ("London", "Place"),
          ("Analytical Engine", "Machine")]  # fmt: skip
FLAT = [entity for entity in NESTED if entity[1] != "Surname"]


def import_files(folder, capsys, *arguments):
    """Run training/import_data.py. Returns the records that it wrote, and its output."""
    output = folder / "train.jsonl"
    capsys.readouterr()
    import_data.main([*map(str, arguments), "--output", str(output)])
    return read_jsonl(output), capsys.readouterr().out


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def marked(record):
    """(text, label) of each entity of a record, in text order; of several with the same start, the longest first."""
    text = record["text"]
    if isinstance(text, list):
        spans = [(start, end, label) for start, end, _, label in record["entity"]]
        assert all(" ".join(text[start:end]) == quote for start, end, quote, _ in record["entity"])
    else:
        spans = [(item["start"], item["end"], item["label"]) for item in record["entities"]]
    spans.sort(key=lambda span: (span[0], -span[1], span[2]))
    return [(text[start:end] if isinstance(text, str) else " ".join(text[start:end]), label)
            for start, end, label in spans]  # fmt: skip
