"""
Train SeNER on a pretrained encoder.

    accelerate launch training/train.py --config training/configs/scirex_small.yaml \
        --train_file train.jsonl --dev_file dev.jsonl --output_dir my-model

Any field of the YAML file can be given on the command line as well (`--field value`). When the run ends, `output_dir`
is a folder that `AutoModel.from_pretrained(output_dir, trust_remote_code=True)` loads, or that can be pushed to the
Hub: the weights of the epoch with the best F1 on dev. What cannot be learnt ends the run before its first step, and
if F1 stays 0 the run says so. `--resume` goes on from the newest state.

With n processes (`accelerate launch --multi_gpu --num_processes n`, also on the CPU, or a file of
training/configs/accelerate/) a step has n times as many windows. The processes of all machines must share the same
`output_dir`.
"""

from training.common.start import run


# isort: split
from pathlib import Path

from transformers.utils import logging

from training.common.cli import keep_freed_memory, on_main_process, set_timeout, use_all_cores
from training.common.files import writing
from training.fitting.fields import parse_fields
from training.fitting.loop import train
from training.fitting.run import LOGS, build_accelerator, build_run, outcome, start_trackers
from training.fitting.run_data import check_data
from training.fitting.state import check_best, exclusive_run


def main(arguments: list[str] | None = None) -> None:
    fields = parse_fields(arguments, __doc__)
    accelerator = build_accelerator(fields)
    use_all_cores(accelerator.device)
    keep_freed_memory(accelerator.device)
    logging.disable_progress_bar()  # of loading and saving
    checkpoints = Path(fields.output_dir) / "checkpoints"
    facts = on_main_process(accelerator, lambda: check_data(fields))
    with exclusive_run(accelerator, checkpoints):
        this_run = build_run(accelerator, fields, facts, checkpoints)
        start_trackers(accelerator, fields)
        set_timeout(fields.timeout)
        progress = train(this_run)
        # Avoid a deadlock: after an exchange of objects gloo's thread may need the GIL, while the model's destructor
        # holds it and waits for that thread.
        accelerator.wait_for_everyone()
        with writing(checkpoints / LOGS):
            accelerator.end_training()
    if accelerator.is_main_process:
        check_best(progress, Path(fields.output_dir))
    accelerator.print(outcome(progress, fields, this_run.steps_done))


if __name__ == "__main__":
    run(main, "go on with --resume")
