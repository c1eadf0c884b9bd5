"""
Extract the entities of a corpus of any size into one file.

    accelerate launch training/predict.py --model my-model --input corpus.jsonl notes.txt --output entities.jsonl

Input: `.txt` files (a text each, UTF-8), `.jsonl` and `.jsonl.gz` files (`text`: a string or a list of words; `id` or
`doc_id`) and `.parquet` files (columns of the same names).
Output, as `.jsonl`, `.jsonl.gz` or `.parquet`: `{"id": ..., "entities": [{"start", "end", "text", "label", "score"},
...]}` for each text, in the order of the input. The id of a .txt file is its path, a line without id has FILE:LINE.
A text that does not fit into memory is named, and gets `{"id": ..., "entities": null, "error": "does not fit into
memory"}`. The other texts are completed, and the exit code is 1.

The texts are shared out over the processes and machines of `accelerate launch`. Only the first process reads the input
and writes the output, one chunk of texts at a time. After a kill, or once a fault in the input is repaired, the same
command with `--resume` continues; until the output is complete, it is `entities.jsonl.partial`. A run is not resumed
with another model, threshold, list of inputs, or changed texts.
"""

from training.common.start import run


# isort: split
import argparse
from datetime import timedelta
from functools import partial

import torch
from accelerate import PartialState

from training.common.cli import keep_few_kernels, on_main_process, set_timeout, use_all_cores
from training.common.models import resolve
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import extract_shared
from training.inference.job import Prediction, argument_parser, signature_of


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=16, help="the most texts in a batch (default: 16)")
    parser.add_argument("--timeout", type=float, default=5, metavar="MINUTES", help="that processes wait for one that "
                        "hangs; twice as many at first, while one reads the input (default: 5)")  # fmt: skip
    return parser.parse_args(arguments)


def load_on_every_process(options: argparse.Namespace, state: PartialState) -> tuple:
    """Load model and processor on every process, on the first one first, so that an error is printed once."""
    loaded: list[tuple] = []

    def load_and_check():
        loaded.append(load_checkpoint(resolve(options.model)))
        loaded[0][1].thresholds(options.threshold)
        if options.batch_size < 1:
            raise ValueError(f"--batch_size {options.batch_size}: expected a number from 1")

    on_main_process(state, load_and_check)
    model, processor = loaded[0] if loaded else load_checkpoint(resolve(options.model))
    return model.to(state.device), processor


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.timeout <= 0:
        raise ValueError(f"--timeout {options.timeout}: expected a number of minutes above 0")
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(minutes=2 * options.timeout))
    use_all_cores(state.device)
    keep_few_kernels()
    job = Prediction(options.input, options.output, options.resume, state.num_processes)
    if on_main_process(state, job.start):
        model, processor = load_on_every_process(options, state)
        on_main_process(state, lambda: job.show(signature_of(model, processor, options.threshold)))
        set_timeout(options.timeout)
        while texts := on_main_process(state, job.next_texts):
            found = extract_shared(model, processor, texts, batch_size=options.batch_size,
                                   threshold=options.threshold, keep_going=True)  # fmt: skip
            on_main_process(state, partial(job.add, found))
        if state.is_main_process:
            job.finish()  # which takes as long as it takes: nobody waits for it
    state.destroy_process_group()


if __name__ == "__main__":
    run(main, "go on with --resume")
