"""
Show the entities of one text file.

    python training/extract.py paper.txt
    python training/extract.py contract.txt --model contracts
    python training/extract.py paper.txt --format brat > paper.ann
    pdftotext paper.pdf - | python training/extract.py -

Prints a table (text, label, score, position in characters) and a summary. `--format` prints JSON, brat's standoff
format, or CoNLL columns (a word and its IOB tag) instead. CoNLL holds flat entities: of those that overlap, the one
with the highest score is printed. Characters of labels that brat or CoNLL cannot hold are escaped
(`License_x0020_Grant`), and said to be on standard error; import_data.py undoes it.
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

from training.common.models import MODEL_HELP, find_model
from training.corpus.data import read_text
from training.corpus.labels import NOT_IN, escape_label
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import extract
from training.inference.interop import flat, to_brat, to_conll


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="a text file, UTF-8 or marked UTF-16; - reads standard input")
    parser.add_argument(
        "--model",
        default="papers",
        help=f"{MODEL_HELP} (default: papers)",
    )
    parser.add_argument("--format", choices=("table", "json", "brat", "conll"), default="table",
                        help="of the output (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threshold", type=float, help="accept spans from this score on (default: the model's own)")
    return parser.parse_args(arguments)


def entity_table(entities: list[dict], width: int) -> list[str]:
    """Format an aligned table; texts are shortened so that a line fits into `width` columns of the terminal."""
    rows = [(entity["label"], f"{entity['score']:.2f}", f"{entity['start']}-{entity['end']}") for entity in entities]
    head = ("LABEL", "SCORE", "POSITION")
    widths = [max(map(columns, column)) for column in zip(head, *rows, strict=True)]
    room = max(12, width - sum(widths) - 2 * len(widths))
    texts = [clip_to_columns(entity["text"], room) for entity in entities]
    room = max(map(columns, ["TEXT", *texts]))
    lines = []
    for text, cells in zip(["TEXT", *texts], [head, *rows], strict=True):
        parts = [pad(cell, size) for cell, size in zip((text, *cells), (room, *widths), strict=True)]
        lines.append("  ".join(parts).rstrip())
    return lines


def columns(text: str) -> int:
    """The number of terminal columns of a text: two for wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
               for char in text)  # fmt: skip


def pad(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def clip_to_columns(text: str, width: int) -> str:
    """`text` on one line of at most `width` columns: white space becomes one blank, other unprintable characters ?."""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    if columns(text) <= width:
        return text
    while columns(text) > width - 3:
        text = text[:-1]
    return text + "..."


def entity_summary(entities: list[dict], text: str) -> str:
    counts = Counter(entity["label"] for entity in entities)
    per_label = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    found = f"{len(entities)} entities" if len(entities) != 1 else "1 entity"
    return f"{found} in {len(text):,} characters" + (f": {per_label}" if per_label else "")


def as_file(form: str, text: str, entities: list[dict], processor) -> str:
    """Format the entities as the content of a file."""
    if form == "brat":
        return to_brat(text, entities)
    if form == "conll":
        return to_conll(text, entities, processor.split_words(text))
    return json.dumps(entities, indent=1, ensure_ascii=False) + "\n"


def note_of_escapes(form: str, entities: list[dict]) -> str | None:
    """A line that says which labels have another name in this format; `None` if none has."""
    labels = dict.fromkeys(entity["label"] for entity in entities) if form in NOT_IN else ()
    escapes = [f"{label!r} is {name}" for label in labels if (name := escape_label(label, form)) != label]
    return f"note: labels are escaped for {form}: {', '.join(escapes)}; import_data.py undoes it" if escapes else None


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    name = find_model(options.model)
    text = read_text(options.file)
    logging.disable_progress_bar()  # of loading the weights
    model, processor = load_checkpoint(name)
    entities = extract(model, processor, [text], threshold=options.threshold)[0]
    if options.format != "table":
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        entities = flat(entities) if options.format == "conll" else entities
        print(as_file(options.format, text, entities, processor), end="")
        if note := note_of_escapes(options.format, entities):
            print(note, file=sys.stderr)
        return
    sys.stdout.reconfigure(errors="replace")
    if entities:
        print("\n".join(entity_table(entities, shutil.get_terminal_size().columns)) + "\n")
    print(entity_summary(entities, text))
    if not entities:
        reached = f"no span reaches the threshold {options.threshold}"
        if options.threshold is None:
            reached = "no span reaches the model's thresholds; --threshold 0.1 shows what it is less sure of"
        print(reached, file=sys.stderr)


if __name__ == "__main__":
    run(main)
