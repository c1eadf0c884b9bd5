"""
Convert the exports of annotation tools to this project's training data.

    python training/import_data.py export.jsonl --output train.jsonl --dev_share 0.1

Reads doccano, Label Studio (JSON, JSON-MIN), Prodigy, brat (folders, or pairs of .txt and .ann), CoNLL columns (IOB,
BILOU), spaCy (.spacy, pairs as JSON), GLiNER, Hugging Face tokens and tags (JSON, Parquet), WebAnno TSV 3 (INCEpTION).
The format is recognised by the content. Documents and annotations that cannot be kept are counted, shown, and listed
in train.left-out.txt.

With --dev_share some documents go into train.dev.jsonl. The choice depends only on their text: it is always the same.
"""

from training.common.start import run


# isort: split
import argparse
from pathlib import Path

from modeling_sener import SenerConfig, SenerProcessor
from training.common.files import BUNDLED
from training.corpus.data import stream_files
from training.corpus.recognise import FORMATS
from training.corpus.report import read_and_report
from training.importing.documents import Source, import_documents
from training.importing.draft import Reading
from training.importing.offsets import UNITS
from training.importing.output import LabelTable, import_summary, write_documents, write_left_out


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exports", nargs="+", metavar="EXPORT", help="a file, or a folder of brat's files")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .jsonl file to write")
    parser.add_argument("--format", choices=FORMATS, help="of all exports (default: recognised)")
    parser.add_argument("--dev_share", type=float, metavar="SHARE",
                        help="write about this share of the documents into a second file")  # fmt: skip
    parser.add_argument("--offsets", choices=UNITS, help="what offsets count (default: characters; TSV 3: utf-16)")
    parser.add_argument("--tag_names", metavar="NAMES", help="names of numbered tags in their order: O,B-PER,I-PER")
    parser.add_argument("--max_misquoted", type=float, default=0.01, metavar="SHARE",
                        help="the largest share of entities whose text may differ from their quote; they are left out "
                        "(default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    for name in ("dev_share", "max_misquoted"):
        value = getattr(options, name)
        if value is not None and not (0 < value < 1 or name == "max_misquoted" and value in (0, 1)):
            parser.error(f"--{name} is {value}: expected a number between 0 and 1")
    if not options.output.endswith(".jsonl"):
        parser.error(f"--output is {options.output}: expected a name that ends in .jsonl")
    options.output = Path(options.output)
    options.dev = options.output.with_suffix(".dev.jsonl")
    options.left_out = options.output.with_suffix(".left-out.txt")
    written = {path.resolve() for path in (options.output, options.dev, options.left_out)}
    for export in options.exports:
        if Path(export).resolve() in written:
            parser.error(f"{export} would be overwritten: give another --output")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    sources: list[Source] = []
    reading = Reading(options.offsets, options.tag_names.split(",") if options.tag_names else None)
    records = import_documents(options.exports, options.format, reading, options.max_misquoted, sources)
    written = write_documents(records, options.output, options.dev, options.dev_share)
    if options.dev_share is None and options.dev.exists():
        reading.warnings.append(f"warning: {options.dev} is left from an earlier import, and {options.output} has its "
                                "documents now: delete it, or give --dev_share again")  # fmt: skip
    write_left_out(reading, options.left_out)
    print("\n".join((*import_summary(sources, reading, options.left_out), written)) + "\n")

    processor, table = SenerProcessor.from_pretrained(BUNDLED), LabelTable()
    for name, path in (("TRAIN", options.output), ("DEV", options.dev))[: 2 if options.dev_share else 1]:
        documents = table.counting(name, stream_files([str(path)], None, "train", f"reading {path}"))
        report = read_and_report(str(path), documents, processor, None, SenerConfig().span_window)
        print("\n".join(report.lines()))
    print("\n".join(("", *table.lines(), *reading.warnings)))


if __name__ == "__main__":
    run(main)
