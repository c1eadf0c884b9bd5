"""Read a run's data twice without holding it in memory: check it first, then cut it into windows on disk."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from modeling_sener import SenerConfig, SenerProcessor
from training.corpus.batches import drawn_count
from training.corpus.data import DataError, stream_files
from training.corpus.report import DataReport, read_and_report
from training.corpus.windows import StoredWindows, Window, cut_windows, encode_document
from training.fitting.fields import TrainingFields


def check_data(fields: TrainingFields) -> list[str]:
    """
    Check every line of train and dev files.

    Returns:
        The label set: the field `labels`, else the labels of the train files, sorted.

    Raises:
        DataError: the first fault, or there is no label.
    """
    for _ in stream_files(fields.dev_file, fields.labels, "validation", "checking dev_file"):
        pass
    found = set()
    for document in stream_files(fields.train_file, fields.labels, "train", "checking train_file"):
        found.update(label for _, _, label in document.entities)
    if not (fields.labels or found):
        raise DataError(f"{' '.join(fields.train_file)}: no entity in this file, and no labels given")
    return fields.labels or sorted(found)


def store_windows(path: Path, fields: TrainingFields, processor: SenerProcessor, config: SenerConfig) -> list[str]:
    """
    Write the training windows to `path`.

    Returns:
        The lines of the report on train and dev files.
    """
    labels, span_window = config.labels, config.span_window
    report = DataReport(" ".join(fields.train_file), span_window)
    write_windows(path, fields, processor, labels, fields.max_tokens, span_window, report)
    dev = stream_files(fields.dev_file, fields.labels, "validation", "reading dev_file")
    dev_report = read_and_report(" ".join(fields.dev_file), dev, processor, labels, span_window)
    return report.lines() + dev_report.lines()


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

    def windows() -> Iterator[Window]:
        for document in stream_files(fields.train_file, fields.labels, "train", "cutting train_file"):
            encoded = encode_document(processor, document)
            report.add(document, encoded, labels)
            encoded = replace(encoded, entities=learnt(encoded.entities))
            cut, without_window, cut_words = cut_windows(encoded, max_tokens, span_window, label2id)
            report.without_window += without_window
            report.cut_words += cut_words
            for window in cut:
                if window.num_words:
                    report.windows += 1
                    report.empty_windows += not window.spans
                    yield replace(window, document=document.id)

    StoredWindows.write(path, windows())
    if not report.windows:
        raise DataError(f"{' '.join(fields.train_file)}: text: no text has a single word")
    if report.empty_windows == report.windows:
        raise DataError(
            f"{' '.join(fields.train_file)}: none of the {report.windows:,} training windows holds an "
            f"entity, so that nothing can be learnt: add entities, or, if any of the "
            f"{report.entities.total():,} in the texts is too wide, raise span_window or max_tokens"
        )
    report.drawn_windows = drawn_count(report.empty_windows, fields.empty_window_share)
