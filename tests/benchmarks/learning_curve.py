"""
Measure what a number of annotated documents gives: train and score on 5, 10, 25, ... of them.

    cd tests && python -m benchmarks.learning_curve --config ../training/configs/few_documents.yaml \
        --train_file train.jsonl --dev_file dev.jsonl --output_dir curve --documents 5 10 25 57 \
        --tagger_backbone sentence-transformers/all-MiniLM-L6-v2 [--field value ...]

All other options are fields of training/train.py. The documents are drawn with the run's seed; a larger number holds
those of the smaller ones. All labels of the train file are known to each run. With `--tagger_backbone` the plain
tagger (training/baseline_tagger.py) is trained beside it, on this encoder and with the same fields, but for its
learning rates (1e-4 and 5e-4).

The command can be killed and started again: it skips what has a report, and resumes a training from its newest state.
It writes `learning_curve.json`, `learning_curve.md` and `learning_curve.png`, and prints the table. Minutes are those
of training with its evaluations after each epoch.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from training.ablations import run_command
from training.common.files import write_text
from training.common.progress import progress_bar
from training.common.start import run
from training.corpus.data import Document, stream_files
from training.evaluation.scoring import RATIOS
from training.fitting.fields import FieldError, TrainingFields, parse_fields
from training.fitting.run_data import check_data


SENER, TAGGER = "SeNER", "plain tagger"
# Those of few_documents.yaml are for an encoder that is trained already: at them the plain tagger finds nothing.
TAGGER_RATES = {"learning_rate": 1e-4, "head_learning_rate": 5e-4}
COLORS = {SENER: "#1f5fa8", TAGGER: "#b4552d"}


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options of this command; returns them, and the other arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", nargs="+", type=int, required=True, metavar="N", help="numbers of documents")
    parser.add_argument("--tagger_backbone", metavar="NAME", help="also train the plain tagger on this encoder")
    return parser.parse_known_args(arguments)


def draw_documents(fields: TrainingFields, counts: list[int]) -> list[Document]:
    """
    Draw as many documents of the train files as the largest of `counts`, in random order.

    Raises:
        FieldError: a count is below 1, or there are not so many documents.
    """
    documents = list(stream_files(fields.train_file, fields.labels, "train", "reading train_file"))
    for count in counts:
        if not 1 <= count <= len(documents):
            raise FieldError(f"--documents {count}: expected 1 to {len(documents):,}, the documents of train_file")
    random.Random(fields.seed).shuffle(documents)  # not `sample`, whose first items depend on how many are drawn
    return documents[: max(counts)]


def data_line(document: Document) -> str:
    """A document as a line of a data file."""
    if document.is_split:
        entities = [[start, end, document.text[start:end], label] for start, end, label in document.entities]
        record = {"doc_id": document.id, "text": document.text, "entity": entities}
    else:
        entities = [{"start": start, "end": end, "label": label} for start, end, label in document.entities]
        record = {"id": document.id, "text": document.text, "entities": entities}
    return json.dumps(record) + "\n"


def write_config(folder: Path, fields: TrainingFields) -> None:
    """Write the fields of a run to `config.yaml`, for training/train.py and the tagger."""
    values = asdict(fields)
    write_text(folder / "config.yaml", yaml.safe_dump(values | values.pop("model"), allow_unicode=True))


def train_and_score(folder: Path, fields: TrainingFields, tell: Callable[[str], None]) -> None:
    """Train SeNER in `folder`; it gets `model/`, `log.txt` and, last, `report.json`."""
    model, log, aside = folder / "model", folder / "log.txt", folder / "report.partial"
    write_config(folder, replace(fields, output_dir=str(model)))
    run_command("train.py", ["--config", folder / "config.yaml", "--resume"], log, tell)
    run_command("score.py", ["--model", model, "--data", *fields.dev_file, "--output", aside], log, tell)
    history = json.loads((model / "checkpoints" / "history.json").read_text(encoding="utf-8"))
    store_report(folder, aside, sum(entry["seconds"] for entry in history))
    for state in (model / "checkpoints").glob("state_*"):  # three times the size of the model
        shutil.rmtree(state)


def train_tagger(folder: Path, fields: TrainingFields, tell: Callable[[str], None]) -> None:
    """Train the plain tagger in `folder`; it gets `model/`, `log.txt` and, last, `report.json`."""
    model, begin = folder / "model", time.perf_counter()
    write_config(folder, replace(fields, output_dir=str(model), **TAGGER_RATES))
    run_command("baseline_tagger.py", ["--config", folder / "config.yaml"], folder / "log.txt", tell)
    store_report(folder, model / "report.json", time.perf_counter() - begin)


def store_report(folder: Path, report: Path, seconds: float) -> None:
    """Add the minutes of training to a report, and move it to its place."""
    scores = json.loads(report.read_text(encoding="utf-8"))
    write_text(folder / "report.json", json.dumps(scores | {"minutes": seconds / 60}, indent=1) + "\n")
    report.unlink()


def read_points(folder: Path, counts: list[int]) -> dict[str, list[dict]]:
    """The points of each curve that have a report: `documents`, `minutes`, each ratio, and `interval` of F1."""
    curves = {}
    for name in (SENER, TAGGER):
        files = {count: place(folder, name, count) / "report.json" for count in counts}
        reports = {count: json.loads(file.read_text(encoding="utf-8"))
                   for count, file in files.items() if file.is_file()}  # fmt: skip
        curves[name] = [
            {"documents": count, "minutes": report["minutes"], "interval": report["interval"]["f1"],
             **{ratio: report[ratio] for ratio in RATIOS}}
            for count, report in reports.items()
        ]  # fmt: skip
    return curves


def place(folder: Path, name: str, count: int) -> Path:
    return folder / f"{count}_{name.replace(' ', '_').lower()}"


def curve_table(curves: dict[str, list[dict]]) -> str:
    """Format the output of `read_points` as a Markdown table, in per cent."""
    lines = ["| documents | model | precision | recall | F1 (95 % interval) | minutes |", "|---|---|---|---|---|---|"]
    rows = [(point["documents"], name, point) for name, points in curves.items() for point in points]
    for count, name, point in sorted(rows, key=lambda row: (row[0], row[1])):
        precision, recall, f1, low, high = (100 * x for x in (*(point[ratio] for ratio in RATIOS), *point["interval"]))
        lines.append(f"| {count:,} | {name} | {precision:.1f} | {recall:.1f} | {f1:.1f} ({low:.1f}–{high:.1f}) | "
                     f"{point['minutes']:.0f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def plot_curves(curves: dict[str, list[dict]], counts: list[int], file: Path) -> None:
    """Plot F1 with its interval against the number of documents."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        f1 = [point["f1"] for point in points]
        errors = [[abs(point["f1"] - point["interval"][side]) for point in points] for side in (0, 1)]
        axes.errorbar([point["documents"] for point in points], f1, yerr=errors, color=COLORS[name], marker="o",
                      markersize=5, capsize=3, elinewidth=0.8, label=name if points else None)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{count:,}" for count in counts]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("annotated documents")
    axes.set_ylabel("F1 on dev (95 % interval)")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=200)


def run_point(folder: Path, name: str, fields: TrainingFields, documents: list[Document],
              tell: Callable[[str], None]) -> None:  # fmt: skip
    """Train one of the two models on `documents`, if that is not done yet."""
    if (folder / "report.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "train.jsonl"
    write_text(data, "".join(map(data_line, documents)))
    own = replace(fields, train_file=[str(data)])
    if name == SENER:
        train_and_score(folder, own, tell)
    else:
        train_tagger(folder, own, tell)


def main(arguments: list[str] | None = None) -> None:
    options, training = parse_arguments(arguments)
    fields = parse_fields(training, __doc__)
    counts = sorted(set(options.documents))
    drawn = draw_documents(fields, counts)
    fields = replace(fields, labels=check_data(fields).labels)
    encoders = {SENER: fields.backbone, TAGGER: options.tagger_backbone}
    plan = [(count, name) for count in counts for name, encoder in encoders.items() if encoder is not None]
    folder = Path(fields.output_dir)
    with progress_bar(total=len(plan), unit="run") as bar:

        def tell(line: str) -> None:
            bar.write(f"{bar.desc}{line}", file=sys.stderr)

        for count, name in plan:
            bar.set_description(f"{count:,} documents, {name}")
            own = replace(fields, backbone=encoders[name])
            run_point(place(folder, name, count), name, own, drawn[:count], tell)
            curves = read_points(folder, counts)
            write_text(folder / "learning_curve.json", json.dumps(curves, indent=1) + "\n")
            write_text(folder / "learning_curve.md", curve_table(curves))
            plot_curves(curves, counts, folder / "learning_curve.png")
            bar.update()
    print(curve_table(curves), end="")


if __name__ == "__main__":
    run(main, "the same command goes on")
