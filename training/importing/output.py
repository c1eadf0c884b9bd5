"""Write the files of an import, split into train and dev; print what was left out, and a table of labels."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.common.files import write_text, writing
from training.common.start import undone_by_signal
from training.corpus.data import DataError, Document
from training.corpus.recognise import FORMATS
from training.importing.documents import Source
from training.importing.draft import Reading


SHOWN = 5  # examples of a reason; the file has all
EXAMPLE = 40  # characters


def write_documents(records: Iterable[dict], output: Path, dev: Path, dev_share: float | None) -> str:
    """
    Write JSON Lines: complete files, or none.

    With a `dev_share` there are two files. The split depends only on the text of each document, not on the order or on
    other documents; equal texts go into the same file. Both files get at least one document.

    Returns:
        A sentence for the user.

    Raises:
        DataError: there is only one text to split.
        WriteError: see `writing`.
    """
    aside, hashes = _aside(output), []
    with _removed(aside):
        with writing(output):
            file = open(aside, "wb")
        with file:
            for record in records:  # errors of the reader must not become a `WriteError`
                hashes.append(text_hash(record["text"]))
                with writing(output):
                    file.write(record_line(record))
            with writing(output):
                file.flush()
        if dev_share is None:
            with writing(output):
                os.replace(aside, output)
            return f"wrote {output}: {len(hashes):,} documents"
        known = sorted(set(hashes))
        if len(known) < 2:
            raise DataError("--dev_share: one text cannot be split into two files")
        limit = min(max(int(dev_share * 2**64), known[0] + 1), known[-1])
        for_dev = [value < limit for value in hashes]
        _split(aside, for_dev, output, dev)
    count = sum(for_dev)
    return (f"wrote {output}: {len(hashes) - count:,} documents, {dev}: {count:,} documents "
            f"({100 * count / len(hashes):.1f} %)")  # fmt: skip


def _split(path: Path, for_dev: list[bool], output: Path, dev: Path) -> None:
    parts = {target: Path(f"{_aside(target)}.part") for target in (output, dev)}
    with _removed(*parts.values()):
        for target, wanted in ((output, False), (dev, True)):
            with writing(target), open(path, "rb") as source, open(parts[target], "wb") as file:
                file.writelines(line for line, is_dev in zip(source, for_dev, strict=True) if is_dev == wanted)
        for target, part in parts.items():
            with writing(target):
                os.replace(part, target)


def _aside(path: Path) -> Path:
    return Path(f"{path}.{os.getpid()}.partial")  # one name for each process


@contextmanager
def _removed(*paths: Path) -> Iterator[None]:
    """Remove these files on exit, if they still exist."""

    def remove():
        for path in paths:
            with suppress(OSError):
                path.unlink()

    try:
        with undone_by_signal(remove):
            yield
    finally:
        remove()


def text_hash(text: str | list[str]) -> int:
    """The first 64 bits of the SHA-256 of a text."""
    content = text if isinstance(text, str) else "\n".join(text)
    return int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def record_line(record: dict) -> bytes:
    """A line of JSON; escaped if the record has a lone surrogate, which UTF-8 cannot encode."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def write_left_out(reading: Reading, path: Path) -> None:
    """Write a line for everything that was left out; no file if nothing was."""
    if reading.left_out:
        lines = [f"{line}: {reason}\n" for reason, line in reading.left_out]
        write_text(path, "".join(lines), errors="backslashreplace")
    else:
        path.unlink(missing_ok=True)


def import_summary(sources: list[Source], reading: Reading, left_out: Path) -> list[str]:
    """Summarise what was read, what was left out and why, as lines of text."""
    lines = [f"{source.path}: {FORMATS[source.kind]}: {source.documents:,} documents, {source.entities:,} entities"
             for source in sources]  # fmt: skip
    reasons = defaultdict(list)
    for reason, line in reading.left_out:
        reasons[reason].append(line)
    if reasons:
        lines.append(f"left out: {len(reading.left_out):,} (all of them: {left_out})")
    for reason, examples in reasons.items():
        lines.append(f"  {len(examples):,}: {reason}")
        lines += [f"    {example}" for example in examples[:SHOWN]]
        lines += ["    ..."] if len(examples) > SHOWN else []
    ignored = [f"{count:,} {what}" for what, count in sorted(reading.ignored.items()) if count]
    lines += [f"not read: {', '.join(ignored)}"] if ignored else []
    lines += [f"note: {count:,} {text}" for text, count in reading.remarks.items() if count]
    return lines


class LabelTable:
    """Counts each label in each file; keeps the first entity of a label as an example."""

    def __init__(self):
        self.counts: dict[str, Counter] = {}
        self.examples: dict[str, str] = {}

    def counting(self, name: str, documents: Iterable[Document]) -> Iterator[Document]:
        """Count the labels of documents and pass the documents on."""
        counts = self.counts.setdefault(name, Counter())
        for document in documents:
            for start, end, label in document.entities:
                counts[label] += 1
                if label not in self.examples:
                    found = document.text[start:end]
                    self.examples[label] = clip_example(found if isinstance(found, str) else " ".join(found))
            yield document

    def lines(self) -> list[str]:
        total = sum(self.counts.values(), Counter())
        rows = [("LABEL", *self.counts, "FOR INSTANCE")]
        for label in sorted(total, key=lambda label: (-total[label], label)):
            counts = [f"{counts[label]:,}" for counts in self.counts.values()]
            rows.append((clip_example(label), *counts, self.examples[label]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for first, *counts, last in rows:
            cells = [cell.rjust(width) for cell, width in zip(counts, widths[1:-1], strict=True)]
            lines.append("  ".join((first.ljust(widths[0]), *cells, last)))
        for name, counts in self.counts.items():
            lacking = [clip_example(label) for label in sorted(total) if not counts[label]]
            if lacking:
                lines.append(f"note: not in {name}: {', '.join(lacking)}; with a larger or smaller --dev_share both "
                             "sides may have all labels")  # fmt: skip
        return lines


def clip_example(text: str) -> str:
    """`text` on one line of at most `EXAMPLE` characters; characters that are not printable become ?."""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return text if len(text) <= EXAMPLE else text[: EXAMPLE - 3] + "..."
