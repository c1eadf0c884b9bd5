"""A prediction over files: from input to output, resumed as the run it was, whatever computes the entities."""

import argparse
import sys
import zlib
from collections.abc import Iterable, Iterator

import torch
from tqdm.auto import tqdm

from modeling_sener import SenerModel, SenerProcessor
from training.common.files import WriteError
from training.corpus.data import DataError, Document
from training.inference.extraction import words_in
from training.inference.inputs import count_texts, stream_inputs
from training.inference.results import FAULT, Results, as_line, checksum_of_text, is_faulty


# Of a stretch, for each process: more would be lost to a kill, less would leave processes waiting for each other.
CHUNK_TEXTS, CHUNK_WORDS = 64, 100_000
# Fields of a config that are no others with other entities: names, versions, dropout, what `labels` says.
WITHOUT_EFFECT = ("_name_or_path", "architectures", "auto_map", "biaffine_dropout", "dtype", "id2label", "label2id",
                  "chunk_size", "span_dropout", "threshold", "transformers_version")  # fmt: skip


def argument_parser(description: str) -> argparse.ArgumentParser:
    """What every command has that predicts."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a SeNER checkpoint")
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE",
                        help=".txt, .jsonl, .jsonl.gz and .parquet files")  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="the file to write: .jsonl, .jsonl.gz, .parquet"
    )
    parser.add_argument("--threshold", type=float, help="accept spans from this score on (default: the model's own)")
    parser.add_argument("--resume", action="store_true", help="go on with a run of the same model, input and "
                        "threshold that did not end, or start anew where there is none")  # fmt: skip
    return parser


def chunks(documents: Iterable[Document], processes: int) -> Iterator[list[Document]]:
    """Lists of documents that follow each other, each of about as many as keep all processes at work for a while."""
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
    From input to output, without the model: what the first process does, and no other.

    Attributes:
        counts: the number of texts of each input.
    """

    def __init__(self, inputs: list[str], output: str, resume: bool, processes: int = 1):
        self.inputs, self.resume, self.results = inputs, resume, Results(output)
        self.documents = stream_inputs(inputs)
        self.chunks = chunks(self.documents, processes)
        self.chunk: list[Document] = []
        self.counts: list[int] = []

    def start(self) -> bool:
        """Check everything that can be checked at once, skip what is done; whether there is anything to do."""
        if not self.results.check(self.inputs, self.resume):
            print(f"{self.results.path} is complete")
            return False
        self.counts = [count_texts(path) for path in self.inputs]
        self.results.resume(self.documents)
        if self.results.done:
            print(f"resumed after {self.results.done:,} texts")
        return True

    def show(self, signature: dict) -> None:
        """The output and the bar, once the model is loaded: a message before that is a line of its own."""
        # Two runs that start together: one of them ends here, before any work.
        self.results.begin({"input": self.inputs, **signature})
        self.bar = tqdm(total=sum(self.counts), initial=self.results.done, unit="text")

    def next_texts(self) -> list[str | list[str]]:
        """The texts that come next, none at the end."""
        try:
            self.chunk = next(self.chunks, [])
        except DataError as error:
            raise self.stopped_by(error) from error
        return [document.text for document in self.chunk]

    def add(self, found: list[list[dict] | None]) -> None:
        """The entities of each of `next_texts`, `None` of one that does not fit into memory."""
        lines = [as_line(document.id, entities) for document, entities in zip(self.chunk, found, strict=True)]
        self.write(lines, [checksum_of_text(document.text) for document in self.chunk])

    def write(self, lines: list[str], texts: list[int]) -> None:
        """Lines of the output, and the `checksum_of_text` of their texts."""
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
        """File and number in it, from 1, of a text of the whole input."""
        for path, count in zip(self.inputs, self.counts, strict=True):
            if number < count:
                return f"{path}: text {number + 1:,}"
            number -= count
        raise IndexError(number)

    def finish(self) -> None:
        """
        Give the output its name.

        Raises:
            DataError: where texts had to be left out.
        """
        self.bar.close()
        self.results.finish()
        if failed := self.results.failed:
            raise DataError(
                f"{failed:,} of {self.results.done:,} texts: {FAULT['error']}: {self.results.path} is complete but "
                "for them, their lines have an `error`"
            )

    def stopped_by(self, error: DataError) -> DataError:
        """`error`, and what becomes of the texts before it."""
        self.bar.close()
        self.results.close()
        done = self.results.done
        kept = f"; {done:,} texts are done: repair the input and start the same command with --resume" if done else ""
        return DataError(f"{error}{kept}")


def signature_of(model: SenerModel, processor: SenerProcessor, threshold: float | None) -> dict:
    """
    All that entities depend on, by name, beside their text. Left out is what changes no more than the rounding of
    scores: devices, batches, the number of processes.
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
