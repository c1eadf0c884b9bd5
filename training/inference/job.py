"""Prediction over files, without the model: read the input, write the output, resume a run that was killed."""

import argparse
import sys
import zlib
from collections.abc import Iterable, Iterator

import torch

from modeling_sener import SenerModel, SenerProcessor
from training.common.files import WriteError
from training.common.models import MODEL_HELP
from training.common.progress import progress_bar
from training.corpus.data import DataError, Document
from training.inference.extraction import words_in
from training.inference.inputs import count_texts, stream_inputs
from training.inference.results import FAULT, Results, checksum_of_text, is_faulty, prediction_line


# Of a chunk, per process. Larger chunks lose more to a kill; with smaller ones processes wait for each other.
CHUNK_TEXTS, CHUNK_WORDS = 64, 100_000
# Fields of a config that do not change the entities (names, versions, dropout), or that repeat `labels`.
WITHOUT_EFFECT = ("_name_or_path", "architectures", "auto_map", "biaffine_dropout", "dtype", "id2label", "label2id",
                  "chunk_size", "span_dropout", "threshold", "transformers_version")  # fmt: skip


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that all prediction commands have."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE",
                        help=".txt, .jsonl, .jsonl.gz and .parquet files")  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="the file to write: .jsonl, .jsonl.gz, .parquet"
    )
    parser.add_argument("--threshold", type=float, help="accept spans from this score on (default: the model's own)")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished run of the same model, input "
                        "and threshold, or start anew if there is none")  # fmt: skip
    return parser


def corpus_chunks(documents: Iterable[Document], processes: int) -> Iterator[list[Document]]:
    """Split documents into lists of `CHUNK_TEXTS` texts, or about `CHUNK_WORDS` words, per process."""
    chunk, words = [], 0
    for document in documents:
        chunk.append(document)
        words += words_in(document.text)
        if len(chunk) == CHUNK_TEXTS * processes or words >= CHUNK_WORDS * processes:
            yield chunk
            chunk, words = [], 0
    if chunk:
        yield chunk


class Prediction:
    """
    Reads the input and writes the output. Only the first process uses it; the model runs elsewhere.

    Attributes:
        counts: the number of texts in each input file.
    """

    def __init__(self, inputs: list[str], output: str, resume: bool, processes: int = 1):
        self.inputs, self.resume, self.results = inputs, resume, Results(output)
        self.documents = stream_inputs(inputs)
        self.chunks = corpus_chunks(self.documents, processes)
        self.chunk: list[Document] = []
        self.counts: list[int] = []

    def start(self) -> bool:
        """Check input and output, and skip the texts that are done. Returns whether there is anything to do."""
        if not self.results.check(self.inputs, self.resume):
            print(f"{self.results.path} is complete")
            return False
        self.counts = [count_texts(path) for path in self.inputs]
        self.results.resume(self.documents)
        if self.results.done:
            print(f"resumed after {self.results.done:,} texts")
        return True

    def show(self, signature: dict) -> None:
        """Open the output and show the bar. Call it after the model is loaded, whose messages would break the bar."""
        # Of two runs that start together, the second ends here, before any work.
        self.results.begin({"input": self.inputs, **signature})
        self.bar = progress_bar(total=sum(self.counts), initial=self.results.done, unit="text")

    def next_texts(self) -> list[str | list[str]]:
        """The next chunk of texts; an empty list at the end."""
        try:
            self.chunk = next(self.chunks, [])
        except DataError as error:
            raise self.stopped_by(error) from error
        return [document.text for document in self.chunk]

    def add(self, found: list[list[dict] | None]) -> None:
        """Write the entities of each of `next_texts`; `None` for a text that does not fit into memory."""
        lines = [prediction_line(document.id, entities) for document, entities in zip(self.chunk, found, strict=True)]
        self.write(lines, [checksum_of_text(document.text) for document in self.chunk])

    def write(self, lines: list[str], texts: list[int]) -> None:
        """Write lines of the output; `texts` are the `checksum_of_text` of their texts."""
        for number, line in enumerate(lines, start=self.results.done):
            if is_faulty(line):
                self.bar.write(f"{self.place(number)}: {FAULT['error']}: {line}", file=sys.stderr)
        try:
            self.results.write(lines, texts)
        except WriteError:
            self.bar.close()
            raise
        self.bar.update(len(lines))

    def place(self, number: int) -> str:
        """The file, and the number in it (from 1), of a text with this number (from 0) in the whole input."""
        for path, count in zip(self.inputs, self.counts, strict=True):
            if number < count:
                return f"{path}: text {number + 1:,}"
            number -= count
        raise IndexError(number)

    def finish(self) -> None:
        """
        Give the output its final name and format.

        Raises:
            DataError: some texts did not fit into memory.
        """
        self.bar.close()
        self.results.finish()
        if failed := self.results.failed:
            raise DataError(
                f"{failed:,} of {self.results.done:,} texts: {FAULT['error']}: {self.results.path} is complete but "
                "for them, their lines have an `error`"
            )

    def stopped_by(self, error: DataError) -> DataError:
        """Close the output; returns `error` with advice on how to resume."""
        self.bar.close()
        self.results.close()
        done = self.results.done
        kept = f"; {done:,} texts are done: repair the input and start the same command with --resume" if done else ""
        return DataError(f"{error}{kept}")


def signature_of(model: SenerModel, processor: SenerProcessor, threshold: float | None) -> dict:
    """
    Everything that entities depend on, apart from their text: name -> value. Devices, batches and the number of
    processes are left out: they change only the rounding of scores.
    """
    fields = model.config.to_dict()
    fields |= {f"backbone_config.{name}": value for name, value in fields.pop("backbone_config").items()}
    fields = {name: value for name, value in fields.items() if name.rpartition(".")[2] not in WITHOUT_EFFECT}
    thresholds = [round(value, 6) for value in processor.thresholds(threshold).tolist()]
    weights = 0
    for name, tensor in sorted(model.state_dict().items()):
        content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        weights = zlib.crc32(content, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), weights))
    tokenizer = zlib.crc32(processor.tokenizer.backend_tokenizer.to_str().encode())
    return {"labels": model.config.labels, "threshold": thresholds, **fields, "word_pattern": processor.word_pattern,
            "checksum of the tokenizer": tokenizer, "checksum of the weights": weights}  # fmt: skip
