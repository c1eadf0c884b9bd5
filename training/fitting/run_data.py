"""Read a run's data twice without holding it in memory: check it first, then cut it into windows on disk."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from modeling_sener import SenerConfig, SenerProcessor
from modeling_sener.texts import holds_blank_line
from modeling_sener.windows import Window, cut_windows
from training.corpus.batches import drawn_count
from training.corpus.data import DataError, stream_files
from training.corpus.report import DataReport, read_and_report
from training.corpus.windows import StoredWindows, encode_document
from training.fitting.fields import TrainingFields


class DataFacts(NamedTuple):
    """
    What the model's config takes from the data.

    Attributes:
        labels: the field `labels`, else the labels of the train files, sorted.
        cross_blank_lines: whether an entity of the train files holds a blank line.
    """

    labels: list[str]
    cross_blank_lines: bool


def check_data(fields: TrainingFields) -> DataFacts:
    """
    Check every line of train and dev files.

    Raises:
        DataError: for the first fault, and for data that nothing can be learnt from, or nothing be measured with: no
            label, no development entity of any label, training texts that are all the same.
    """
    train_name, dev_name = " ".join(fields.train_file), " ".join(fields.dev_file)
    in_dev: Counter = Counter()
    for document in stream_files(fields.dev_file, fields.labels, "validation", "checking dev_file"):
        in_dev.update(label for _, _, label in document.entities)
    found, first, texts, differ, crosses = set(), None, 0, False, False
    for document in stream_files(fields.train_file, fields.labels, "train", "checking train_file"):
        found.update(label for _, _, label in document.entities)
        crosses = crosses or any(holds_blank_line(document.text, start, end) for start, end, _ in document.entities)
        first = document.text if first is None else first
        texts, differ = texts + 1, differ or document.text != first
    if not (fields.labels or found):
        raise DataError(f"{train_name}: no entity in this file, and no labels given")
    if texts > 1 and not differ:
        raise DataError(f"{train_name}: all {texts:,} texts are the same one, and a model would learn it by heart: "
                        "look at what made the file, or give the text once")  # fmt: skip
    labels = fields.labels or sorted(found)
    if not any(in_dev[label] for label in labels):
        what = f"none of its {in_dev.total():,} entities has a label that is learnt" if in_dev else "no entity in it"
        raise DataError(f"{dev_name}: {what}, so that F1 would be 0 in every epoch: put annotated texts into dev_file "
                        "(training/import_data.py --dev_share 0.1 splits an export)")  # fmt: skip
    return DataFacts(labels, crosses)


def check_findable(report: DataReport) -> None:
    """Raise `DataError` where no entity of the development data can be found, so that F1 would always be 0."""
    if report.findable:
        return
    reasons = [
        (report.wide.total(), f"are wider than span_window {report.span_window} (raise it to {report.widest - 1})"),
        (report.inside_word, "begin or end inside a word (set word_pattern)"),
        (report.off_boundary - report.inside_word, "do not begin and end with a word"),
        (report.with_blank_line, "hold a blank line (set cross_blank_lines)"),
        (report.unreachable, "touch no word with tokens"),
    ]
    counted = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
    raise DataError(f"{report.name}: none of the {report.entities.total():,} entities can be found, so that F1 would "
                    f"be 0 in every epoch: {counted}")  # fmt: skip


def store_windows(path: Path, fields: TrainingFields, processor: SenerProcessor, config: SenerConfig) -> list[str]:
    """
    Write the training windows to `path`.

    Returns:
        The lines of the report on train and dev files.
    """
    labels, span_window = config.labels, config.span_window
    report = DataReport(" ".join(fields.train_file), span_window, config.cross_blank_lines)
    write_windows(path, fields, processor, labels, fields.max_tokens, span_window, report)
    dev = stream_files(fields.dev_file, fields.labels, "validation", "reading dev_file")
    dev_report = read_and_report(" ".join(fields.dev_file), dev, processor, labels, span_window,
                                 config.cross_blank_lines)  # fmt: skip
    check_findable(dev_report)
    return report.lines() + dev_report.lines() + dev_report.lines_on_scoring()


def write_windows(
    path: Path,
    fields: TrainingFields,
    processor: SenerProcessor,
    labels: list[str],
    max_tokens: int,
    span_window: int | None,
    report: DataReport,
    learnt: Callable[[list], list] = list,
) -> None:
    """
    Cut the train files into windows on disk, and count them in `report`.

    Args:
        learnt: chooses the entities of a text that are learnt; all by default.

    Raises:
        DataError: no text has a word, or no window holds an entity.
    """
    label2id = {label: i for i, label in enumerate(labels)}
    shortest: dict[str, tuple[int, int]] = {}
    held: set[int] = set()

    def windows() -> Iterator[Window]:
        for document in stream_files(fields.train_file, fields.labels, "train", "cutting train_file"):
            encoded = encode_document(processor, document)
            report.add(document, encoded, labels)
            encoded = replace(encoded, entities=learnt(encoded.entities))
            for first, last, label in encoded.entities:
                size = last - first, encoded.tokens_of(first, last)
                shortest[label] = min(size, shortest.get(label, size))
            cut, without_window, cut_words = cut_windows(encoded, max_tokens, span_window, label2id)
            report.without_window += without_window
            report.cut_words += cut_words
            for window in cut:
                held.update(number for _, _, number in window.spans)
                if window.num_words:
                    report.windows += 1
                    report.empty_windows += not window.spans
                    yield replace(window, document=document.id)

    StoredWindows.write(path, windows())
    if not report.windows:
        raise DataError(f"{' '.join(fields.train_file)}: text: no text has a single word")
    if report.empty_windows == report.windows:
        cure = raise_to_hold(min(shortest.values()), span_window, max_tokens) if shortest else "add entities"
        raise DataError(
            f"{' '.join(fields.train_file)}: none of the {report.windows:,} training windows holds an entity, of "
            f"{report.entities.total():,} in the texts, so that nothing can be learnt: {cure}"
        )
    report.out_of_reach = {
        label: raise_to_hold(size, span_window, max_tokens)
        for label, size in sorted(shortest.items()) if label2id[label] not in held
    }  # fmt: skip
    report.drawn_windows = drawn_count(report.empty_windows, fields.empty_window_share)


def raise_to_hold(size: tuple[int, int], span_window: int | None, max_tokens: int) -> str:
    """
    What to change so that a window holds an entity.

    Args:
        size: its words; its tokens, with the special tokens of a window.
    """
    words, tokens = size
    fields = [f"span_window to {words - 1:,}"] if span_window is not None and words - 1 > span_window else []
    fields += [f"max_tokens to {tokens:,}"] if tokens > max_tokens else []
    return f"raise {' and '.join(fields)}, for the shortest of {words:,} words"
