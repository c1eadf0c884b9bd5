"""
Extract the entities of a corpus on a Ray cluster, which shares out the work and repeats that of a lost node.

    pip install -e '.[cluster]'             # on every node
    python training/predict_ray.py --model my-model --input part1.jsonl part2.jsonl --output entities.jsonl

Input, output and `--resume` are those of training/predict.py. Run it on a node of the cluster, as a job of it, or with
its address in RAY_ADDRESS; without a cluster it starts one on this machine. The model and the input must be on a disk
that all nodes share; the output is written where the command runs. Files are read in parallel, a task each. Each GPU
of the cluster holds a copy of the model; without GPUs, each core but one.
"""

from training.common.start import run


# isort: split
import argparse
import json
import logging
import sys
from collections.abc import Iterator
from itertools import islice

import numpy as np


try:
    import ray
except ModuleNotFoundError:
    sys.exit("error: Ray is not installed: pip install -e '.[cluster]'")
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayTaskError

from training.common.cli import keep_few_kernels
from training.common.models import resolve
from training.corpus.data import DataError
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import extract
from training.inference.inputs import stream_inputs
from training.inference.job import Prediction, argument_parser, signature_of
from training.inference.results import checksum_of_text, prediction_line


TEXTS = 64  # in a block, the unit of work of an actor, which is computed again if it is lost


def read_blocks(batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[str]]]:
    """Read files (`path`) from text number `skip` on; yield blocks of texts with their ids, as JSON."""
    for path, skip in zip(batch["path"].tolist(), batch["skip"].tolist(), strict=True):
        documents = islice(stream_inputs([path]), skip, None)
        while block := [json.dumps([document.id, document.text]) for document in islice(documents, TEXTS)]:
            yield {"document": block}


class ModelActor:
    """An actor that holds a copy of the model."""

    def __init__(self, model: str, threshold: float | None):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        keep_few_kernels()
        self.model, self.processor = load_checkpoint(model)
        self.model.to(device)
        self.threshold = threshold

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        ids, texts = zip(*map(json.loads, batch["document"].tolist()), strict=True)
        found = extract(self.model, self.processor, texts, threshold=self.threshold, keep_going=True)
        return {"line": [prediction_line(*pair) for pair in zip(ids, found, strict=True)],
                "text": [checksum_of_text(text) for text in texts]}  # fmt: skip


def left_to_read(job: Prediction) -> list[dict]:
    """The files that are not done (`path`), with the number of their texts that are (`skip`)."""
    left, done = [], job.results.done
    for path, count in zip(job.inputs, job.counts, strict=True):
        if done < count:
            left.append({"path": path, "skip": done})
        done = max(0, done - count)
    return left


def lines_of(files: list[dict], options: argparse.Namespace) -> Dataset:
    """The lines of the output, in order; Ray computes them lazily."""
    cores, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
    if cores < 2 and not gpus:
        raise ValueError("the cluster has one core, and needs one to read and one to compute: use training/predict.py")
    texts = ray.data.from_items(files, override_num_blocks=len(files)).map_batches(read_blocks, batch_size=1)
    return texts.repartition(target_num_rows_per_block=TEXTS).map_batches(
        ModelActor,
        fn_constructor_args=(options.model, options.threshold),
        batch_size=TEXTS,
        compute=ActorPoolStrategy(min_size=1, max_size=gpus or cores - 1),
        num_gpus=1 if gpus else None,
    )


def main(arguments: list[str] | None = None) -> None:
    options = argument_parser(__doc__).parse_args(arguments)
    options.model = resolve(options.model)
    job = Prediction(options.input, options.output, options.resume)
    if not job.start():
        return
    signature = signature_of(*load_checkpoint(options.model), options.threshold)  # before any actor loads it
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, and need not be logged, too
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False  # `job` shows one
    job.show(signature)
    if files := left_to_read(job):
        try:
            for batch in lines_of(files, options).iter_batches(batch_size=None, batch_format="numpy"):
                job.write(batch["line"].tolist(), batch["text"].tolist())
        except RayTaskError as error:
            if isinstance(error.cause, DataError):
                message = str(error.cause).partition("\n")[0]  # Ray appends lines
                raise job.stopped_by(DataError(message)) from error
            raise
    job.finish()
    ray.shutdown()


if __name__ == "__main__":
    run(main, "go on with --resume")
