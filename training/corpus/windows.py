"""Tokenize documents, and store their training windows on disk."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modeling_sener.windows import EncodedDocument, Window
from training.corpus.data import Document


def encode_document(processor, document: Document) -> EncodedDocument:
    """Tokenize a document and map its gold spans to words; nothing is cut."""
    inputs = processor([document.text], return_tensors="pt", is_split_into_words=document.is_split)
    return EncodedDocument.of(inputs, document.entities)


class StoredWindows:
    """
    Windows in a memory-mapped file, which may be larger than memory.

    Attributes:
        lengths: *Shape:* (number of windows,), the number of tokens, special tokens included.
        num_words: *Shape:* (number of windows,), the number of words.
        is_empty: *Shape:* (number of windows,), bool, whether the window has no entity.
    """

    def __init__(self, path: Path):
        # A late import: extraction and prediction work without this library.
        from datasets import Dataset

        self.rows = Dataset.from_file(str(path))
        self.lengths = self.rows.data.column("length").to_numpy()
        self.num_words = self.rows.data.column("num_words").to_numpy()
        self.is_empty = self._span_lists().value_lengths().to_numpy() == 0

    @staticmethod
    def write(path: Path, windows: Iterable[Window]) -> None:
        """Write windows to a file, one by one."""
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        numbers = List(Value("int32"))
        features = Features(length=Value("int32"), num_words=Value("int32"), input_ids=numbers, word_index=numbers,
                            spans=List(numbers), document=Value("string"))  # fmt: skip
        with ArrowWriter(path=str(path), features=features, writer_batch_size=100) as writer:
            for window in windows:
                writer.write({
                    "length": len(window.input_ids), "num_words": window.num_words, "input_ids": window.input_ids,
                    "word_index": window.word_index, "spans": [list(span) for span in window.spans],
                    "document": window.document,
                })  # fmt: skip
            writer.finalize()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Window:
        row = self.rows[int(index)]
        spans = [tuple(span) for span in row["spans"]]
        return Window(np.array(row["input_ids"]), np.array(row["word_index"]), spans, row["document"])

    def spans(self) -> np.ndarray:
        """The spans of all windows: first word, last word + 1, label number. *Shape:* (S, 3)."""
        return self._span_lists().flatten().flatten().to_numpy().reshape(-1, 3)

    def _span_lists(self):
        return self.rows.data.column("spans").combine_chunks()
