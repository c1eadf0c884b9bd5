"""What an import writes and prints: the files, the split into train and dev, what was left out, a table of labels."""

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


SHOWN = 5  # of what was left out for one reason; the file has all
EXAMPLE = 40  # characters


def write_documents(records: Iterable[dict], output: Path, dev: Path, dev_share: float | None) -> str:
    """
    Write JSON Lines, whole or not at all.

    With a `dev_share` there are two files. Which documents are for development depends on their text alone: not on
    their order, nor on which others there are; equal texts are on one side. Both files get at least one.

    Returns:
        A sentence on what was written.

    Raises:
        DataError: where one text alone is to be split.
        WriteError: see `writing`.
    """
    aside, hashes = _aside(output), []
    with _removed(aside):
        with writing(output):
            file = open(aside, "wb")
        with file:
            for record in records:  # what fails in here is not the writing
                hashes.append(text_hash(record["text"]))
                with writing(output):
                    file.write(as_line(record))
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
    return Path(f"{path}.{os.getpid()}.partial")  # two processes that write one file do not share it


@contextmanager
def _removed(*paths: Path) -> Iterator[None]:
    """Remove these files in the end, if they are still there."""

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
    """64 bits that a text always has."""
    content = text if isinstance(text, str) else "\n".join(text)
    return int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def as_line(record: dict) -> bytes:
    """A line of JSON; in JSON's escapes where it has half of a surrogate pair, which UTF-8 cannot hold."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def write_left_out(reading: Reading, path: Path) -> None:
    """All that was left out, a line each; no file where nothing was."""
    if reading.left_out:
        lines = [f"{line}: {reason}\n" for reason, line in reading.left_out]
        write_text(path, "".join(lines), errors="backslashreplace")
    else:
        path.unlink(missing_ok=True)


def summary(sources: list[Source], reading: Reading, left_out: Path) -> list[str]:
    """What was read, what was not, and why."""
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
    """How often each label is in each file, with the first entity that has it."""

    def __init__(self):
        self.counts: dict[str, Counter] = {}
        self.examples: dict[str, str] = {}

    def counting(self, name: str, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents as they are, counted as they pass."""
        counts = self.counts.setdefault(name, Counter())
        for document in documents:
            for start, end, label in document.entities:
                counts[label] += 1
                if label not in self.examples:
                    found = document.text[start:end]
                    self.examples[label] = clip(found if isinstance(found, str) else " ".join(found))
            yield document

    def lines(self) -> list[str]:
        total = sum(self.counts.values(), Counter())
        rows = [("LABEL", *self.counts, "FOR INSTANCE")]
        for label in sorted(total, key=lambda label: (-total[label], label)):
            counts = [f"{counts[label]:,}" for counts in self.counts.values()]
            rows.append((clip(label), *counts, self.examples[label]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for first, *counts, last in rows:
            cells = [cell.rjust(width) for cell, width in zip(counts, widths[1:-1], strict=True)]
            lines.append("  ".join((first.ljust(widths[0]), *cells, last)))
        for name, counts in self.counts.items():
            lacking = [clip(label) for label in sorted(total) if not counts[label]]
            if lacking:
                lines.append(f"note: {len(lacking)} labels are not in {name}: {', '.join(lacking)}; with a larger or "
                             "smaller --dev_share both sides may have them")  # fmt: skip
        return lines


def clip(text: str) -> str:
    """`text` on a line of at most `EXAMPLE` characters: what a terminal cannot show becomes ?."""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return text if len(text) <= EXAMPLE else text[: EXAMPLE - 3] + "..."
