"""
Train SeNER on a pretrained encoder.

    accelerate launch training/train.py --config training/configs/scirex_small.yaml \
        --train_file train.jsonl --dev_file dev.jsonl --output_dir my-model

Any field of the YAML file can be given on the command line as well (`--field value`). When the run ends, `output_dir`
is a folder that `AutoModel.from_pretrained(output_dir, trust_remote_code=True)` loads, or that can be pushed to the
Hub: the weights of the epoch with the best F1 on dev. `--resume` goes on from the newest checkpoint.

Over several processes (`accelerate launch --multi_gpu --num_processes 4`, on the CPU too, or a file of
training/configs/accelerate/) a step has as many times more windows, and the processes of all machines must see the
same `output_dir`.
"""

from training.common.start import run


# isort: split
from pathlib import Path

from transformers.utils import logging

from training.common.cli import keep_freed_memory, on_main_process, set_timeout, use_all_cores
from training.common.files import writing
from training.fitting.fields import parse_fields
from training.fitting.loop import train
from training.fitting.run import LOGS, build_accelerator, build_run, start_trackers
from training.fitting.run_data import check_data
from training.fitting.state import check_best, exclusive_run


def main(arguments: list[str] | None = None) -> None:
    fields = parse_fields(arguments, __doc__)
    accelerator = build_accelerator(fields)
    use_all_cores(accelerator.device)
    keep_freed_memory(accelerator.device)
    logging.disable_progress_bar()  # of loading and saving: the bar of the run is enough
    checkpoints = Path(fields.output_dir) / "checkpoints"
    labels = on_main_process(accelerator, lambda: check_data(fields))
    with exclusive_run(accelerator, checkpoints):
        this_run = build_run(accelerator, fields, labels, checkpoints)
        start_trackers(accelerator, fields)
        set_timeout(fields.timeout)
        progress = train(this_run)
        # Where the last exchange was one of objects, gloo's thread may want Python's lock while the model's end, which
        # holds it, waits for that thread.
        accelerator.wait_for_everyone()
        with writing(checkpoints / LOGS):
            accelerator.end_training()
    if accelerator.is_main_process:
        check_best(progress, Path(fields.output_dir))
    accelerator.print(f"best F1 on dev: {progress.best_f1:.4f} (epoch {progress.best_epoch}); saved in "
                      f"{fields.output_dir}")  # fmt: skip


if __name__ == "__main__":
    run(main, "go on with --resume")
