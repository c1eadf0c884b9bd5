"""
Score a checkpoint on gold data: precision, recall and F1 by set of (document, start, end, label).

    accelerate launch training/score.py --model my-model --data test.jsonl --output report.json --report report.html
    accelerate launch training/score.py --model my-model --data dev.jsonl --fit_thresholds

The last line of the output is a JSON object (fractions, not per cent): micro and macro averages with 95 % bootstrap
intervals, scores per label, by length, nesting and position, by overlap (partial matches), and more. `--report` writes
the same with plots as an HTML page. Progress, the data report and a line to read go to standard error. Gold that the
model cannot find (wider than its window, not on word boundaries) stays in the recall's denominator.

`--fit_thresholds` fits a threshold for each label to the data, one for all labels with fewer than 100 entities in it,
and stores them in the checkpoint. Fit them on development data: scores on the data of the fit are too high.
"""

from training.common.start import run


# isort: split
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from training.common.cli import use_all_cores
from training.common.files import nearest, write_text, writing
from training.common.models import MODEL_HELP, resolve
from training.corpus.data import is_file, read_documents
from training.corpus.report import report_on
from training.corpus.windows import encode_document
from training.evaluation.breakdown import score_corpus
from training.evaluation.candidates import score_spans
from training.evaluation.score_report import write_report
from training.evaluation.thresholds import fit_thresholds, store_thresholds
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import naming


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE",
                        help="JSON Lines with gold entities, or NAME:SPLIT of a data set")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="also write the JSON object to this file")
    parser.add_argument("--report", metavar="FILE", help="write an HTML page with plots")
    parser.add_argument("--batch_size", type=int, default=16, help="the most texts in a batch (default: 16)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--threshold", type=float, help="accept spans from this score on (default: the model's own)")
    group.add_argument("--fit_thresholds", action="store_true", help="fit thresholds per label, store them in the "
                       "model's folder, and score with them")  # fmt: skip
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Raise `ValueError` for faults that would otherwise appear after the model has run for hours."""
    if options.batch_size < 1:
        raise ValueError(f"--batch_size {options.batch_size}: expected a number from 1")
    for source in options.data:
        if not is_file(source) and ":" not in source:
            raise ValueError(f"--data {source}: no such file (of a data set name the split as well, {source}:test)"
                             f"{nearest(source)}")  # fmt: skip
    taken = {Path(source).resolve(): "data" for source in options.data}
    for name in ("output", "report"):
        path = getattr(options, name)
        if path is None:
            continue
        if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
            raise ValueError(f"--{name} {path}: expected a file in a folder that exists")
        other = taken.setdefault(Path(path).resolve(), name)
        if other != name:
            raise ValueError(f"--{name} {path} would overwrite --{other}: give another file")
    if options.fit_thresholds and not (Path(options.model) / "config.json").is_file():
        raise ValueError(f"--fit_thresholds stores them in the model: {options.model} is not a local folder")


def fit_lines(before: dict, after: dict) -> list[str]:
    """Thresholds and F1 before and after fitting, as text: a line per label, and one for all."""
    width = max(len("all (micro)"), *map(len, after["thresholds"]))
    lines = [f"{'label':{width}}  threshold         F1"]
    for label, threshold in after["thresholds"].items():
        f1 = [scores["per_label"].get(label, {"f1": 0.0})["f1"] for scores in (before, after)]
        lines.append(
            f"{label:{width}}  {before['thresholds'][label]:.4f} -> {threshold:.4f}  {f1[0]:.4f} -> {f1[1]:.4f}"
        )
    lines.append(f"{'all (micro)':{width}}  {'':16}  {before['f1']:.4f} -> {after['f1']:.4f}")
    return [*lines, "note: fitted on this very data, where they look better than they are: score other data"]


def score_and_fit(options: argparse.Namespace, documents: list, scored, thresholds: np.ndarray, config) -> dict:
    """The scores; with `--fit_thresholds`, those with the fitted thresholds."""
    scores = score_corpus(documents, scored, thresholds, config)
    if not options.fit_thresholds:
        return scores
    start = np.full(len(thresholds), 0.5)  # not the model's own: a fit on these texts would keep what it cannot better
    fitted = fit_thresholds(scored, documents, start, config, progress=True)
    before, scores = scores, score_corpus(documents, scored, fitted, config)
    print("\n".join(fit_lines(before, scores)), file=sys.stderr)
    return scores | {"before_fitting": {name: before[name] for name in ("precision", "recall", "f1", "thresholds")}}


def result_lines(options: argparse.Namespace, scores: dict) -> list[str]:
    """The scores in a line to read, and one for each file that was written."""
    low, high = scores["interval"]["f1"]
    line = (f"precision {scores['precision']:.4f}, recall {scores['recall']:.4f}, F1 {scores['f1']:.4f} "
            f"(95 % interval {low:.4f} to {high:.4f}); by overlap {scores['overlap']['f1']:.4f}")  # fmt: skip
    return [line, *(f"{path}: written" for path in (options.output, options.report) if path)]


def write_results(options: argparse.Namespace, result: dict) -> None:
    """Write the result to all files, and print it even if a file cannot be written."""
    try:
        if options.fit_thresholds:
            store_thresholds(options.model, result["thresholds"])
        if options.output:
            write_text(options.output, json.dumps(result, indent=1) + "\n")
        if options.report:
            write_report(result, options.report)
        print("\n".join(result_lines(options, result)), file=sys.stderr)
    finally:
        with writing("standard output"):
            print(json.dumps(result), flush=True)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    check_options(options)
    options.model = resolve(options.model)
    state = PartialState(cpu=not torch.accelerator.is_available())
    use_all_cores(state.device)
    model, processor = load_checkpoint(options.model)
    config, thresholds = model.config, processor.thresholds(options.threshold)
    documents = [document for path in options.data for document in read_documents(path, config.labels)]
    encoded = [encode_document(processor, document) for document in documents]
    report = report_on(" ".join(options.data), documents, encoded, config)
    if state.is_main_process:
        print("\n".join(report.lines() + report.lines_on_scoring()), file=sys.stderr)
    with naming(documents):
        scored = score_spans(model.to(state.device), processor, [document.text for document in documents], thresholds,
                             options.batch_size, progress=True)  # fmt: skip
    if state.is_main_process:
        write_results(options, score_and_fit(options, documents, scored, thresholds.numpy(), config) | {
            "model": options.model, "data": options.data, "texts": report.texts, "words": report.words,
            "entities": report.entities.total(), "wider_than_window": report.wide.total(),
            "off_word_boundaries": report.off_boundary, "without_tokens": report.unreachable,
            "duplicates_removed": report.duplicates, "trimmed": report.trimmed,
        })  # fmt: skip
    state.destroy_process_group()


if __name__ == "__main__":
    run(main)
