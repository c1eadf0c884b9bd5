"""
Extract the entities of many texts, a corpus of any size, into one file.

    accelerate launch training/predict.py --model my-model --input corpus.jsonl notes.txt --output entities.jsonl

Input: `.txt` files (a text each, UTF-8), `.jsonl` and `.jsonl.gz` files (`text`: a string or a list of words; `id` or
`doc_id`) and `.parquet` files (columns of the same names).
Output, in the order of the input: `{"id": ..., "entities": [{"start", "end", "text", "label", "score"}, ...]}` a text,
as `.jsonl`, `.jsonl.gz` or `.parquet`; the id of a .txt file is its path, that of a line without one FILE:LINE.
A text that memory does not hold is named and has `{"id": ..., "entities": null, "error": "does not fit into memory"}`;
the others are done, and the exit code is 1.

The texts are shared out over the processes and machines of `accelerate launch`; the first process alone reads the
input and writes the output, a stretch of texts at a time. After a kill, or when a fault in the input is repaired, the
same command with `--resume` goes on where it was; what is done lies in `entities.jsonl.partial` until all of it is.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from training.common.cli import keep_few_kernels, on_main_process, run, use_all_cores
from training.common.files import WriteError
from training.corpus.data import FILE_ENDINGS, DataError, Document, read_lines, stream_documents
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import extract_shared, words_in
from training.inference.results import FAULT, Results, as_line, is_faulty


# Of a stretch, for each process: more would be lost to a kill, less would leave processes waiting for each other.
STRETCH_TEXTS, STRETCH_WORDS = 64, 100_000
PATIENCE = timedelta(days=7)  # of processes that wait while the first one reads through what is done


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=16, help="texts of a batch at most (default: 16)")
    return parser.parse_args(arguments)


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


def count_texts(path: str) -> int:
    """
    The number of texts in a file.

    Raises:
        DataError: for a file that cannot be read, is of no known kind, or has a line that is not UTF-8.
    """
    if path.endswith(FILE_ENDINGS):
        return sum(1 for _ in tqdm(read_lines(path), desc=f"counting {path}", unit="text", leave=False))
    if path.endswith(".parquet"):
        from training.corpus.parquet import count_rows

        return count_rows(path)
    if path.endswith(".txt"):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        return 1
    raise DataError(f"{path}: expected a .txt, .jsonl, .jsonl.gz or .parquet file")


def stream_inputs(paths: Iterable[str]) -> Iterator[Document]:
    """The texts of all files one by one, in order; `DataError` for the first fault, with file and line."""
    for path in paths:
        if path.endswith(".parquet"):
            # Imported where it is needed: the other formats do without pyarrow.
            from training.corpus.parquet import read_parquet

            yield from read_parquet(path)
        elif path.endswith(".txt"):
            yield Document(path, read_text(path))
        else:
            yield from stream_documents(path, with_gold=False)


def read_text(path: str) -> str:
    """A UTF-8 file as it is, line ends included, so that offsets are offsets into the file's own text."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def stretches(documents: Iterable[Document], processes: int) -> Iterator[list[Document]]:
    """Lists of documents that follow each other, each of about as many as keep all processes at work for a while."""
    stretch, words = [], 0
    for document in documents:
        stretch.append(document)
        words += words_in(document.text)
        if len(stretch) == STRETCH_TEXTS * processes or words >= STRETCH_WORDS * processes:
            yield stretch
            stretch, words = [], 0
    if stretch:
        yield stretch


class Prediction:
    """
    From input to output, without the model: what the first process does, and no other.

    Attributes:
        counts: the number of texts of each input.
    """

    def __init__(self, inputs: list[str], output: str, resume: bool, processes: int = 1):
        self.inputs, self.resume, self.results = inputs, resume, Results(output)
        self.documents = stream_inputs(inputs)
        self.stretches = stretches(self.documents, processes)
        self.stretch: list[Document] = []
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

    def show(self) -> None:
        """The output and the bar, once the model is loaded: a message before that is a line of its own."""
        self.results.open()  # two runs that start together: one of them ends here, before any work
        self.bar = tqdm(total=sum(self.counts), initial=self.results.done, unit="text")

    def next_texts(self) -> list[str | list[str]]:
        """The texts that come next, none at the end."""
        try:
            self.stretch = next(self.stretches, [])
        except DataError as error:
            raise self.stopped_by(error) from error
        return [document.text for document in self.stretch]

    def add(self, found: list[list[dict] | None]) -> None:
        """The entities of each of `next_texts`, `None` of one that does not fit into memory."""
        self.write([as_line(document.id, entities) for document, entities in zip(self.stretch, found, strict=True)])

    def write(self, lines: list[str]) -> None:
        for number, line in enumerate(lines, start=self.results.done):
            if is_faulty(line):
                self.bar.write(f"{self.place(number)}: {FAULT['error']}: {line}", file=sys.stderr)
        try:
            self.results.write(lines)
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


def load(options: argparse.Namespace, state: PartialState) -> tuple:
    """Model and processor on every process, the first one first: what is wrong is said once."""
    loaded: list[tuple] = []

    def load_and_check():
        loaded.append(load_checkpoint(options.model))
        loaded[0][1].thresholds(options.threshold)
        if options.batch_size < 1:
            raise ValueError(f"--batch_size {options.batch_size}: expected a number from 1")

    on_main_process(state, load_and_check)
    model, processor = loaded[0] if loaded else load_checkpoint(options.model)
    return model.to(state.device), processor


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    use_all_cores(state.device)
    keep_few_kernels()
    job = Prediction(options.input, options.output, options.resume, state.num_processes)
    if on_main_process(state, job.start):
        model, processor = load(options, state)
        on_main_process(state, job.show)
        while texts := on_main_process(state, job.next_texts):
            found = extract_shared(model, processor, texts, batch_size=options.batch_size,
                                   threshold=options.threshold, keep_going=True)  # fmt: skip
            on_main_process(state, partial(job.add, found))
        on_main_process(state, job.finish)
    state.destroy_process_group()


if __name__ == "__main__":
    run(main)
