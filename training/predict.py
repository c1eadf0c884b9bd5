"""
Extract the entities of many texts into a JSON Lines file.

    accelerate launch training/predict.py --model my-model --input corpus.jsonl notes.txt --output entities.jsonl

Input: `.txt` files (a text each, UTF-8) and `.jsonl` files (`text`: a string or a list of words; `id` or `doc_id`).
Output, in the order of the input: `{"id": ..., "entities": [{"start", "end", "text", "label", "score"}, ...]}` a text;
the id of a .txt file is its path.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from training.checkpoint import load_checkpoint
from training.cli import run, use_all_cores
from training.data import DataError, Document, read_documents
from training.inference import extract_shared


CHUNK = 64  # texts that each process takes at a time; what is written so far is lost to a crash, no more


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a SeNER checkpoint")
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE", help=".txt and .jsonl files")
    parser.add_argument("--output", required=True, metavar="FILE", help="the JSON Lines file to write")
    parser.add_argument("--threshold", type=float, help="accept spans from this score on (default: the model's own)")
    parser.add_argument("--batch_size", type=int, default=16, help="texts of a batch at most (default: 16)")
    return parser.parse_args(arguments)


def read_inputs(paths: list[str]) -> list[Document]:
    """The texts of all files, in order; a fault in any of them raises `DataError` before the first one is computed."""
    documents = []
    for path in paths:
        if path.endswith(".jsonl"):
            documents += read_documents(path, with_gold=False)
        elif path.endswith(".txt"):
            documents.append(Document(path, read_text(path)))
        else:
            raise DataError(f"{path}: expected a .txt or a .jsonl file")
    return documents


def read_text(path: str) -> str:
    """A UTF-8 file as it is, line ends included, so that offsets are offsets into the file's own text."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def as_line(document_id: str, entities: list[dict]) -> str:
    """A line of the output; in JSON's escapes where it has what UTF-8 (a lone surrogate) or a screen cannot hold."""
    record = {"id": document_id, "entities": entities}
    line = json.dumps(record, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(record)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    state = PartialState(cpu=not torch.accelerator.is_available())
    use_all_cores(state.device)
    documents = read_inputs(options.input)
    model, processor = load_checkpoint(options.model)
    model.to(state.device)
    aside = options.output + ".partial"
    chunk = CHUNK * state.num_processes
    with open(aside if state.is_main_process else os.devnull, "w", encoding="utf-8") as file, \
            tqdm(total=len(documents), unit="text", disable=not state.is_main_process) as bar:  # fmt: skip
        for i in range(0, len(documents), chunk):
            part = documents[i : i + chunk]
            found = extract_shared(model, processor, [document.text for document in part],
                                   batch_size=options.batch_size, threshold=options.threshold)  # fmt: skip
            for document, entities in zip(part, found, strict=True):
                file.write(as_line(document.id, entities) + "\n")
            bar.update(len(part))
    if state.is_main_process:
        os.replace(aside, options.output)
    state.destroy_process_group()


if __name__ == "__main__":
    run(main)
