"""The data report, printed before the first step: counts, and gold that the model cannot learn or find."""

import math
import shlex
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from modeling_sener import SenerConfig, SenerProcessor
from modeling_sener.band import fits
from modeling_sener.texts import holds_blank_line
from modeling_sener.windows import EncodedDocument
from training.corpus.data import Document
from training.corpus.windows import encode_document
from training.corpus.word_patterns import PATTERNS, REST, count_held, suggestion


LISTED = 8  # labels on a line; more are a table
FEW = 100  # entities; on Profiling-07 the 95 % interval of F1 was 13 points wide with 162, and 57 with 26
EXAMPLES, AROUND = 3, 20  # entities that are shown; characters on either side


@dataclass
class DataReport:
    """
    Counts over a data file. Everything that training leaves out is counted here.

    Attributes:
        span_window: w: an entity of more than w + 1 words cannot be learnt or found; `None` for no limit.
        cross_blank_lines: of the model: if false, an entity that holds a blank line is not found.
        entities: label -> how many.
        widths: number of words -> how many entities have as many.
        nested, crossing, same_span: entities that lie inside another one, that cross another one, and that have
            another one's very span.
        wide: entities (label -> how many) with more words than the span window holds.
        off_boundary, inside_word: entities that do not begin and end with a word; that begin or end inside one.
        with_blank_line: entities that hold a blank line, unless `cross_blank_lines`.
        held: how many of those inside a word each of `word_patterns.PATTERNS` would hold; `cut` shows the first.
        empty_windows, drawn_windows: training windows without an entity; how many of these an epoch draws.
        findable: entities that a model can find: of its labels, on word boundaries, within the span window, without
            a blank line unless `cross_blank_lines`.
        out_of_reach: labels that have entities, but none that a training window holds -> what to change.
        without_window: entities that fit the span window, but no training window of `max_tokens` tokens.
        cut_words: words that have more than `max_tokens` tokens, and are cut.
    """

    name: str
    span_window: int | None
    cross_blank_lines: bool = True
    texts: int = 0
    empty_texts: int = 0
    repeated_ids: int = 0
    repeated_texts: int = 0
    words: int = 0
    tokens: int = 0
    windows: int = 0
    empty_windows: int = 0
    drawn_windows: int = 0
    entities: Counter = field(default_factory=Counter)
    widths: Counter = field(default_factory=Counter)
    nested: int = 0
    crossing: int = 0
    same_span: int = 0
    duplicates: int = 0
    misquoted: int = 0
    trimmed: int = 0
    off_boundary: int = 0
    inside_word: int = 0
    with_blank_line: int = 0
    held: Counter = field(default_factory=Counter)
    cut: list[str] = field(default_factory=list)
    unreachable: int = 0
    wide: Counter = field(default_factory=Counter)
    without_window: int = 0
    findable: int = 0
    out_of_reach: dict[str, str] = field(default_factory=dict)
    cut_words: int = 0
    unknown_labels: Counter = field(default_factory=Counter)
    # Hashes, as the texts themselves may not fit into memory.
    _ids: set[int] = field(default_factory=set, repr=False)
    _texts: set[int] = field(default_factory=set, repr=False)

    def add(self, document: Document, encoded: EncodedDocument, labels: list[str] | None) -> None:
        """Count one document; `labels` are the labels of the model, `None` for all."""
        self.texts += 1
        self.empty_texts += encoded.num_words == 0
        self.repeated_ids += _noted(self._ids, document.id)
        self.repeated_texts += _noted(self._texts, "\n".join(document.text) if document.is_split else document.text)
        self.words += encoded.num_words
        self.tokens += len(encoded.tokens)
        self.duplicates += document.duplicates
        self.misquoted += document.misquoted
        self.trimmed += document.trimmed
        self.off_boundary += encoded.off_boundary
        self._add_inside_word(document, encoded.inside_word)
        self.unreachable += encoded.unreachable
        for _, _, label in document.entities:
            self.entities[label] += 1
            self.unknown_labels[label] += labels is not None and label not in labels
        for first, last, label in encoded.entities:
            self.widths[last - first] += 1
            if not fits(first, last, self.span_window):
                self.wide[label] += 1
        self._add_findable(document, encoded, labels)
        nested, crossing, same_span = count_overlaps([(start, end) for start, end, _ in document.entities])
        self.nested += nested
        self.crossing += crossing
        self.same_span += same_span

    def _add_findable(self, document: Document, encoded: EncodedDocument, labels: list[str] | None) -> None:
        def is_crossing(start: int, end: int) -> bool:
            return not self.cross_blank_lines and holds_blank_line(document.text, start, end)

        self.with_blank_line += sum(is_crossing(start, end) for start, end, _ in document.entities)
        for (first, last, label), (start, end) in encoded.exact.items():
            is_known = labels is None or label in labels
            self.findable += is_known and fits(first, last, self.span_window) and not is_crossing(start, end)

    def _add_inside_word(self, document: Document, spans: list[tuple[int, int, str]]) -> None:
        if not spans:
            return
        self.inside_word += len(spans)
        self.held += count_held(document, spans)
        for start, end, label in spans[: EXAMPLES - len(self.cut)]:
            text, inside = document.text, document.text[start:end]
            if len(inside) > 2 * AROUND:
                inside = f"{inside[:AROUND]}...{inside[-AROUND:]}"
            shown = f"{text[max(0, start - AROUND) : start]}[{inside}]{text[end : end + AROUND]}"
            shown = "".join(char if char.isprintable() else " " for char in shown)
            self.cut.append(f"{document.id}: {shown} ({label})")

    @property
    def widest(self) -> int:
        """The number of words of the longest entity."""
        return max(self.widths, default=0)

    def window_for(self, share: float) -> int:
        """The smallest span window that holds `share` of the entities."""
        wanted, held = math.ceil(share * self.widths.total()), 0
        for width in sorted(self.widths):
            held += self.widths[width]
            if held >= wanted:
                return max(1, width - 1)
        return 1

    def _lines_on_words(self) -> list[str]:
        if not self.inside_word:
            return []
        share = 100 * self.inside_word / self.entities.total()
        lines = [f"  note: {self.inside_word:,} entities ({share:.1f} %) begin or end inside a word, as in:",
                 *(f"    {example}" for example in self.cut)]  # fmt: skip
        name = suggestion(self.held, self.inside_word)
        if name is None:
            return [*lines, "    look at these annotations; if they are right, only words of one letter hold them: "
                    f"--word_pattern {shlex.quote(REST)}"]  # fmt: skip
        return [*lines, f"    {self.held[name]:,} of them are held with {name} (a field of training):",
                f"    --word_pattern {shlex.quote(PATTERNS[name])}"]  # fmt: skip

    def _lines_on_labels(self) -> list[str]:
        return [f"  warning: no training window holds an entity of {label}, which cannot be learnt: {cure}"
                for label, cure in self.out_of_reach.items()]  # fmt: skip

    def lines(self) -> list[str]:
        """The report as lines of text; notes with a count of 0 are left out."""
        total = self.entities.total()
        per_label = ", ".join(f"{label} {count:,}" for label, count in sorted(self.entities.items())) or "none"
        if is_table := len(self.entities) > LISTED:
            per_label = f"{len(self.entities)} labels"
        lines = [
            f"{self.name}: {self.texts:,} texts, {self.words:,} words, {self.tokens:,} tokens"
            + (f", {self.windows:,} windows" if self.windows else ""),
            *self._lines_on_empty_windows(),
            f"  entities: {total:,} ({per_label}); the longest has {self.widest:,} words",
        ]
        if is_table:
            width = max(map(len, self.entities))
            most = sorted(self.entities.items(), key=lambda item: (-item[1], item[0]))
            lines += [f"    {label:{width}}  {count:>9,}" for label, count in most]
        if total:
            lines += [
                f"  overlaps: {100 * self.nested / total:.1f} % lie inside another one, "
                f"{100 * self.crossing / total:.1f} % cross another one, "
                f"{100 * self.same_span / total:.1f} % have the same span as another one",
                f"  span_window {self.window_for(0.99)} holds 99 % of the entities, {self.window_for(1)} all",
            ]
        notes = [f"  note: {count:,} {text}" for count, text in self._notes() if count]
        return lines + notes + self._lines_on_words() + self._lines_on_labels()

    def lines_on_scoring(self) -> list[str]:
        """A note, if F1 on this data says little."""
        total = self.entities.total()
        few = f"  note: {total:,} entities in {self.texts:,} texts are few: F1 on them says little"
        return [f"{few} (score.py gives its interval)"] if total < FEW else []

    def _lines_on_empty_windows(self) -> list[str]:
        if self.drawn_windows == self.empty_windows:
            drawn = "an epoch reads all of them"
        else:
            drawn = f"an epoch draws {self.drawn_windows:,} of them"
        return [f"  windows without an entity: {self.empty_windows:,}; {drawn}"] if self.empty_windows else []

    def _notes(self) -> list[tuple[int, str]]:
        return [
            (self.wide.total(), f"entities are wider than span_window {self.span_window} and cannot be learnt or "
             f"found (span_window {self.widest - 1} would hold all): {_counted(self.wide)}"),
            (self.duplicates, "entities were there twice; the copies were removed"),
            (self.misquoted, "entities quote other words than stand at their offsets; the offsets are used"),
            (self.trimmed, "entities had white space around them, which was trimmed"),
            (self.off_boundary, "entities do not begin and end with a word; they are trained on the words they touch "
             "and count as missed in scoring"),
            (self.with_blank_line, "entities hold a blank line and cannot be found; set cross_blank_lines"),
            (self.unreachable, "entities touch no word with tokens and cannot be learnt or found"),
            (self.without_window, "entities fit no training window; raise max_tokens"),
            (self.cut_words, "words alone have more tokens than max_tokens; their first tokens are used"),
            (self.empty_texts, "texts have no words"),
            (self.repeated_ids, "texts have an id that an earlier text has"),
            (self.repeated_texts, "texts are an earlier one word for word; all are used"),
            (self.unknown_labels.total(), f"entities have labels that the model does not know and count as missed: "
             f"{_counted(self.unknown_labels)}"),
        ]  # fmt: skip


def count_overlaps(spans: list[tuple[int, int]]) -> tuple[int, int, int]:
    """
    Count the spans (`end` exclusive; one per entity) that lie inside a longer one; that cross another one (share words
    with it, neither inside the other); that are equal to another one.
    """
    count = Counter(spans)
    nested, longest = set(), 0
    for start, end in sorted(count, key=lambda span: (span[0], -span[1])):
        if end <= longest:
            nested.add((start, end))
        longest = max(longest, end)
    # Spans that begin inside another one; mirrored, those that end inside another one.
    mirrored = _cross_an_earlier_one([(-end, -start) for start, end in count])
    crossing = _cross_an_earlier_one(list(count)) | {(-end, -start) for start, end in mirrored}
    return (
        sum(count[span] for span in nested),
        sum(count[span] for span in crossing),
        sum(times for times in count.values() if times > 1),
    )


def _cross_an_earlier_one(spans: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The spans that begin inside an earlier span and end after it."""
    found, waiting, ends = set(), [], []
    for start, end in sorted(spans):
        if waiting and waiting[0][0] < start:
            for span in waiting:
                insort(ends, span[1])
            waiting = []
        if bisect_left(ends, end) > bisect_right(ends, start):
            found.add((start, end))
        waiting.append((start, end))
    return found


def report_on(name: str, documents: list[Document], encoded: list[EncodedDocument], config: SenerConfig) -> DataReport:
    """Report on documents and their encodings, which are in the same order, for a model."""
    report = DataReport(name, config.span_window, config.cross_blank_lines)
    for document, tokens in zip(documents, encoded, strict=True):
        report.add(document, tokens, config.labels)
    return report


def read_and_report(
    name: str,
    documents: Iterable[Document],
    processor: SenerProcessor,
    labels: list[str] | None,
    span_window: int | None,
    cross_blank_lines: bool = True,
) -> DataReport:
    """Report on documents that are read one by one."""
    report = DataReport(name, span_window, cross_blank_lines)
    for document in documents:
        report.add(document, encode_document(processor, document), labels)
    return report


def _noted(seen: set[int], content: str) -> bool:
    """Whether the hash of `content` is in `seen`; adds it."""
    key = hash(content)
    known = key in seen
    seen.add(key)
    return known


def _counted(counter: Counter) -> str:
    return ", ".join(f"{label} {count:,}" for label, count in sorted(counter.items()) if count)
