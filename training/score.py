"""
Score a checkpoint on gold data: micro precision, recall and F1 by set of (document, start, end, label).

    accelerate launch training/score.py --model my-model --data test.jsonl --output report.json

Prints one JSON object last (fractions, not per cent); progress and the data report go to standard error. Gold that the
model cannot find (wider than its window, not on word boundaries) stays in the recall's denominator.
"""

import argparse
import json
import sys
from pathlib import Path

from accelerate import PartialState

from training.checkpoint import load_checkpoint
from training.cli import run, use_all_cores
from training.data import read_documents
from training.inference import extract_shared
from training.report import report_on
from training.scoring import as_spans, score
from training.windows import encode_document


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a SeNER checkpoint")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="JSON Lines with gold entities")
    parser.add_argument("--output", help="write the JSON object to this file, too")
    parser.add_argument("--threshold", type=float, help="accept spans from this score on (default: the model's own)")
    parser.add_argument("--batch_size", type=int, default=16, help="texts of a batch at most (default: 16)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    state = PartialState()
    use_all_cores(state.device)
    model, processor = load_checkpoint(options.model)
    labels, window = model.config.labels, model.config.span_window
    documents = [document for path in options.data for document in read_documents(path, labels)]
    encoded = [encode_document(processor, document) for document in documents]
    report = report_on(" ".join(options.data), documents, encoded, labels, window)
    if state.is_main_process:
        print("\n".join(report.lines()), file=sys.stderr)
    found = extract_shared(
        model.to(state.device), processor, [document.text for document in documents], progress=True,
        batch_size=options.batch_size, threshold=options.threshold,
    )  # fmt: skip
    result = score([document.entities for document in documents], [as_spans(entities) for entities in found])
    result |= {
        "texts": report.texts, "words": report.words, "entities": report.entities.total(),
        "wider_than_window": report.wide.total(), "off_word_boundaries": report.off_boundary,
        "without_pieces": report.unreachable, "duplicates_removed": report.duplicates,
    }  # fmt: skip
    if state.is_main_process:
        if options.output:
            Path(options.output).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(json.dumps(result, ensure_ascii=False), flush=True)
    state.destroy_process_group()


if __name__ == "__main__":
    run(main)
