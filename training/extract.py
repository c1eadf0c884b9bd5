"""
Show the entities of one text file.

    python training/extract.py paper.txt
    python training/extract.py paper.txt --format brat > paper.ann

A table (text, label, score, position in characters) and a summary; with `--format` JSON, brat's standoff format, or
CoNLL columns (a word and its IOB tag), whose entities are flat: of those that overlap the one with the highest score.
"""

from training.common.start import run


# isort: split
import argparse
import json
import shutil
import sys
import unicodedata
from collections import Counter

from transformers.utils import logging

from training.common.files import BUNDLED
from training.corpus.data import read_text
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import extract
from training.inference.interop import flat, to_brat, to_conll


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="a UTF-8 text file")
    parser.add_argument("--model", default=str(BUNDLED), help="SeNER checkpoint (default: the bundled one)")
    parser.add_argument("--format", choices=("table", "json", "brat", "conll"), default="table")
    parser.add_argument("--threshold", type=float, help="accept spans from this score on (default: the model's own)")
    return parser.parse_args(arguments)


def entity_table(entities: list[dict], width: int) -> list[str]:
    """Lines of an aligned table; texts are shortened so that a line fits `width` columns of the terminal."""
    rows = [(entity["label"], f"{entity['score']:.2f}", f"{entity['start']}-{entity['end']}") for entity in entities]
    head = ("LABEL", "SCORE", "POSITION")
    widths = [max(map(columns, column)) for column in zip(head, *rows, strict=True)]
    room = max(12, width - sum(widths) - 2 * len(widths))
    texts = [clip(entity["text"], room) for entity in entities]
    room = max(map(columns, ["TEXT", *texts]))
    lines = []
    for text, cells in zip(["TEXT", *texts], [head, *rows], strict=True):
        parts = [pad(cell, size) for cell, size in zip((text, *cells), (room, *widths), strict=True)]
        lines.append("  ".join(parts).rstrip())
    return lines


def columns(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters two, combining ones none."""
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
               for char in text)  # fmt: skip


def pad(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def clip(text: str, width: int) -> str:
    """`text` on one line of at most `width` columns: white space as one blank, what else cannot be shown as ?."""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    if columns(text) <= width:
        return text
    while columns(text) > width - 3:
        text = text[:-1]
    return text + "..."


def summary(entities: list[dict], text: str) -> str:
    counts = Counter(entity["label"] for entity in entities)
    per_label = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    found = f"{len(entities)} entities" if len(entities) != 1 else "1 entity"
    return f"{found} in {len(text):,} characters" + (f": {per_label}" if per_label else "")


def as_file(form: str, text: str, entities: list[dict], processor) -> str:
    """What a file of the format holds."""
    if form == "brat":
        return to_brat(text, entities)
    if form == "conll":
        return to_conll(text, flat(entities), processor.split_words(text))
    return json.dumps(entities, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    text = read_text(options.file)
    logging.disable_progress_bar()  # of loading the weights
    model, processor = load_checkpoint(options.model)
    entities = extract(model, processor, [text], threshold=options.threshold)[0]
    if options.format != "table":
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        print(as_file(options.format, text, entities, processor), end="")
        return
    sys.stdout.reconfigure(errors="replace")
    if entities:
        print("\n".join(entity_table(entities, shutil.get_terminal_size().columns)) + "\n")
    print(summary(entities, text))


if __name__ == "__main__":
    run(main)
