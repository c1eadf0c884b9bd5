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

import json
import math
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, send_to_device, set_seed
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup
from transformers.utils import logging

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training.averaging import average_weights, files_of
from training.batches import Collator, Masking, StepBatches
from training.checkpoint import is_checkpoint, load_for_labels, save_checkpoint
from training.cli import keep_freed_memory, on_main_process, run, use_all_cores
from training.corpus import check_data, store_windows
from training.data import Document, read_documents
from training.fields import FieldError, TrainingFields, parse_fields
from training.files import write_text, writing
from training.inference import extract_shared, naming
from training.lora import add_lora, merged_state_dict
from training.masked_words import MaskedWords
from training.scoring import as_spans, score
from training.state import (
    Progress,
    check_best,
    checksum,
    checksums,
    clear,
    load_state,
    newest_state,
    only_run,
    save_state,
)
from training.windows import StoredWindows


# Fields that may differ where a run is resumed; all others change what it computes.
FREE_FIELDS = ("output_dir", "resume", "save_steps", "report_to", "save_dtype")
LOGS = "logs"  # the folder of the trackers
LOADER_WORKERS = 2  # processes that make batches while an accelerator computes


@dataclass
class Run:
    """
    What the steps of a run share.

    Attributes:
        model: the model in training, within `MaskedWords` where it guesses words, as `Accelerator.prepare` wraps it.
        published: the model as users get it, of the last epoch that was evaluated: whole, adapters merged, the mean of
            `average_epochs` epochs, in float32.
        terms: what must be the same where the run is resumed.
    """

    accelerator: Accelerator
    fields: TrainingFields
    model: torch.nn.Module
    published: SenerModel
    processor: SenerProcessor
    dev: list[Document]
    batches: StepBatches
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    progress: Progress
    checkpoints: Path
    terms: dict
    bar: tqdm

    @property
    def steps_done(self) -> int:
        return (self.progress.epoch - 1) * self.batches.steps + self.progress.step

    def log(self, values: dict, step: int) -> None:
        """Give numbers to the trackers."""
        with writing(self.checkpoints / LOGS, "; make room and go on with --resume"):
            self.accelerator.log(values, step=step)


def build_model(fields: TrainingFields, labels: list[str]) -> tuple[SenerModel, SenerProcessor]:
    """
    A new model on the pretrained encoder, or the checkpoint to go on from, in float32, and its processor.

    Dropout of the attention weights is switched off: on the CPU it takes the slow path of
    `scaled_dot_product_attention`, and the hidden states have dropout of their own.
    """
    if is_checkpoint(fields.backbone):
        model, processor = load_for_labels(fields.backbone, labels, fields.model)
    else:
        model = SenerModel.from_backbone(fields.backbone, labels=labels, **fields.model)
        processor = SenerProcessor.from_backbone(fields.backbone, model.config)
    config = SenerConfig.from_dict(model.config.to_dict())
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config.backbone_config, name):
            setattr(config.backbone_config, name, 0.0)
    quiet = SenerModel(config)
    quiet.load_state_dict(model.state_dict())
    if fields.lora_rank:
        add_lora(quiet, fields.lora_rank, fields.lora_alpha)
    return quiet, SenerProcessor(processor.tokenizer, config, processor.word_pattern)


def build_optimizer(model: torch.nn.Module, encoder: torch.nn.Module, fields: TrainingFields) -> torch.optim.AdamW:
    """AdamW: one learning rate for the model's encoder, one for the head; no weight decay on biases and norms."""
    of_encoder = set(encoder.parameters())
    groups: dict[tuple[bool, bool], list] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter in of_encoder, parameter.dim() > 1), []).append(parameter)
    options = [
        {
            "params": parameters,
            "lr": fields.learning_rate if is_encoder else fields.head_learning_rate,
            "weight_decay": fields.weight_decay if decays else 0.0,
        }
        for (is_encoder, decays), parameters in groups.items()
    ]
    return torch.optim.AdamW(options, fused=True)  # a fourth of the time on the CPU, where it is not the default


def build_accelerator(fields: TrainingFields) -> Accelerator:
    """
    Processes, precision, accumulation and trackers.

    Raises:
        FieldError: a tracker that is not installed.
    """
    trackers = [] if fields.report_to == "none" else [name.strip() for name in fields.report_to.split(",")]
    accelerator = Accelerator(
        # Without this, several processes on a machine without accelerators do not know of each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=fields.mixed_precision,
        log_with=trackers or None,
        project_dir=Path(fields.output_dir) / "checkpoints",
        # Reading a large corpus, or a long evaluation, is no fault of the processes that wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    for name in trackers:
        if name not in ("all", *map(str, accelerator.log_with)):
            raise FieldError(f"report_to is {fields.report_to!r}: {name} is not installed")
    # Set here, as a launcher's configuration would win over an argument above.
    accelerator.gradient_accumulation_steps = fields.gradient_accumulation_steps
    if accelerator.state.deepspeed_plugin is not None:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=fields.batch_size,
            gradient_accumulation_steps=fields.gradient_accumulation_steps,
            gradient_clipping=fields.max_grad_norm,
        )
    return accelerator


def build_batches(
    accelerator: Accelerator, fields: TrainingFields, processor: SenerProcessor, windows: StoredWindows
) -> StepBatches:
    """This process's batches."""
    config = processor.config
    return StepBatches(
        windows,
        Masking(processor.tokenizer, fields.mask_share, guessed=fields.masked_words_weight > 0),
        Collator(processor.tokenizer.pad_token_id, config.span_window, config.num_labels),
        seed=fields.seed,
        batch_size=fields.batch_size,
        accumulation=fields.gradient_accumulation_steps,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )


def build_run(accelerator: Accelerator, fields: TrainingFields, labels: list[str], checkpoints: Path) -> Run:
    """Build the model, print what is in it and in the data, and take up the state that a run is resumed from."""
    set_seed(fields.seed)
    model, processor = build_model(fields, labels)
    published = SenerModel(model.config).eval().to(accelerator.device)
    # One process chooses: on a network file system the others may not see the newest one yet.
    state = on_main_process(accelerator, lambda: newest_state(checkpoints)) if fields.resume else None
    windows_file = checkpoints / "windows.arrow"

    def prepare_folder() -> list[str]:
        lines = []
        # The states of an earlier run must not be resumed later.
        if state is None and clear(checkpoints):
            lines.append(f"{checkpoints}: removed what an earlier run had left there")
        with writing(windows_file):
            return lines + store_windows(windows_file, fields, processor, model.config)

    accelerator.print("\n".join(on_main_process(accelerator, prepare_folder) or []))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable
    accelerator.print(f"parameters: {trainable:,} trainable, {frozen:,} frozen")

    batches = build_batches(accelerator, fields, processor, StoredWindows(windows_file))
    backbone = model.backbone
    if fields.masked_words_weight > 0:
        model = MaskedWords(model, fields.masked_words_weight)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, backbone, fields))
    total = batches.steps * fields.num_epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, round(fields.warmup_share * total), total)
    set_seed(fields.seed, device_specific=True)  # each process has a dropout of its own
    terms = {name: value for name, value in asdict(fields).items() if name not in FREE_FIELDS}
    dev = [
        document for file in fields.dev_file for document in read_documents(file, fields.labels, split="validation")
    ]
    terms |= {"labels": labels, "windows": len(batches.windows), "processes": accelerator.num_processes,
              "checksum of the data": checksum(windows_file, dev)}  # fmt: skip
    progress = Progress()
    if state is not None:
        progress = load_state(accelerator, state, scheduler, terms)
        accelerator.print(f"resumed from {state}")
    bar = tqdm(total=total, initial=(progress.epoch - 1) * batches.steps + progress.step, unit="step", desc="training",
               disable=not accelerator.is_main_process)  # fmt: skip
    return Run(accelerator, fields, model, published, processor, dev, batches, optimizer, scheduler, progress,
               checkpoints, terms, bar)  # fmt: skip


def train(run: Run) -> Progress:
    """The whole run: epochs until there are enough, or until dev F1 has not risen for too long."""
    accelerator, progress, fields = run.accelerator, run.progress, run.fields
    while not progress.is_over(fields.num_epochs, fields.patience):
        train_epoch(run)
        begin = time.perf_counter()
        result = evaluate(run)
        entry = {"epoch": progress.epoch, "loss": progress.loss_sum / len(run.batches.windows),
                 **{name: result[name] for name in ("precision", "recall", "f1")},
                 "seconds": round(progress.seconds + time.perf_counter() - begin, 1)}  # fmt: skip
        is_best = progress.end_epoch(entry)
        run.log({f"dev/{name}": result[name] for name in ("precision", "recall", "f1")}, step=run.steps_done)
        if accelerator.is_main_process:
            run.bar.write("epoch {epoch}: loss {loss:.3f}, dev P {precision:.4f} R {recall:.4f} F1 {f1:.4f}, "
                          "{seconds} s".format(**entry) + (" (best so far)" if is_best else ""))  # fmt: skip
            if is_best:
                save_checkpoint(run.published, run.processor, fields.output_dir, fields.save_dtype)
                folder = Path(fields.output_dir)
                progress.best_files = checksums(folder.glob("model*.safetensors"), folder)
            write_text(run.checkpoints / "history.json", json.dumps(progress.history, indent=1))
        save(run)
    run.bar.close()
    return progress


def train_epoch(run: Run) -> None:
    """The steps of the current epoch that are not done yet."""
    accelerator, progress = run.accelerator, run.progress
    begin = time.perf_counter() - progress.seconds
    run.model.train()
    total = torch.zeros((), device=accelerator.device)
    workers = 0 if accelerator.device.type == "cpu" else LOADER_WORKERS
    norm = None
    for turn, (batch, weight) in enumerate(run.batches.loader(progress.epoch, progress.step, workers)):
        with accelerator.accumulate(run.model):
            try:
                loss = run.model(**send_to_device(batch, accelerator.device)).loss * weight
            except FloatingPointError as error:
                raise diverged(run, str(error), turn % accelerator.gradient_accumulation_steps) from error
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(run.model.parameters(), run.fields.max_grad_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
        total += loss.detach()
        if accelerator.sync_gradients:
            # Before anything is saved. Gradients that overflow in float16 are scaled, and the step is left out.
            if norm is not None and not math.isfinite(norm) and not accelerator.optimizer_step_was_skipped:
                raise diverged(run, f"the norm of the gradients is {float(norm)}")
            end_step(run, accelerator.reduce(total, "mean").item() / accelerator.gradient_accumulation_steps)
            total.zero_()
            progress.seconds = time.perf_counter() - begin
            if progress.step % run.fields.save_steps == 0 and progress.step < run.batches.steps:
                save(run)


def save(run: Run) -> None:
    """Save where the run stands, for `--resume`."""
    needed = files_of(run.checkpoints, run.progress.epoch, run.fields.average_epochs)[:-1]
    save_state(run.accelerator, run.checkpoints, run.progress, run.scheduler, run.terms, needed)


def diverged(run: Run, reason: str, turn: int | None = None) -> FloatingPointError:
    """
    The error of a step whose numbers are not finite, naming it and its documents.

    Args:
        turn: the batch of the step that it is; `None` where it may be any.
    """
    epoch, step = run.progress.epoch, run.progress.step
    batches = run.batches.plan(epoch)[step * run.batches.accumulation : (step + 1) * run.batches.accumulation]
    members = [i for indices, _ in (batches if turn is None else batches[turn : turn + 1]) for i in indices]
    documents = dict.fromkeys(run.batches.windows[i].document for i in members)
    kept = newest_state(run.checkpoints)
    return FloatingPointError(
        f"epoch {epoch}, step {step + 1} of {run.batches.steps} (documents {', '.join(documents)}): {reason}. Lower "
        "learning_rate or head_learning_rate, or use mixed_precision no. "
        + ("No state was saved yet" if kept is None else f"The last state, {kept}, is kept")
    )


def end_step(run: Run, loss: float) -> None:
    """Note a step whose windows have the mean loss `loss`."""
    if not math.isfinite(loss):  # where the model does not look itself, as when it is compiled
        raise diverged(run, f"the loss is {loss}")
    rates = run.scheduler.get_last_lr()
    run.log({"loss": loss, "learning_rate": rates[0], "head_learning_rate": rates[-1]}, step=run.steps_done + 1)
    # A step that float16's scaling skips is none for the learning rate either.
    if not run.accelerator.optimizer_step_was_skipped:
        run.scheduler.step()
    run.progress.loss_sum += loss * run.batches.windows_of_step(run.progress.step)
    run.progress.step += 1
    run.bar.update()
    run.bar.set_postfix(loss=f"{loss:.2f}", refresh=False)


def evaluate(run: Run) -> dict:
    """
    Micro P/R/F1 on whole texts of the model as it would be published at the end of this epoch, by the path that users
    take; each process does its share.
    """
    model = run.accelerator.unwrap_model(run.model)
    weights = merged_state_dict(model.model if isinstance(model, MaskedWords) else model)
    run.published.load_state_dict(
        average_weights(run.accelerator, run.checkpoints, weights, run.progress.epoch, run.fields.average_epochs)
    )
    with naming(run.dev):
        found = extract_shared(run.published, run.processor, [document.text for document in run.dev], progress=True)
    return score([document.entities for document in run.dev], [as_spans(entities) for entities in found])


def start_trackers(accelerator: Accelerator, fields: TrainingFields) -> None:
    """Trackers take numbers and strings."""
    values = {**asdict(fields), **fields.model}
    del values["model"]
    simple = {name: value if isinstance(value, int | float | str) else json.dumps(value)
              for name, value in values.items()}  # fmt: skip
    accelerator.init_trackers(LOGS, config=simple)


def main(arguments: list[str] | None = None) -> None:
    fields = parse_fields(arguments, __doc__)
    accelerator = build_accelerator(fields)
    use_all_cores(accelerator.device)
    keep_freed_memory(accelerator.device)
    logging.disable_progress_bar()  # of loading and saving: the bar of the run is enough
    checkpoints = Path(fields.output_dir) / "checkpoints"
    labels = on_main_process(accelerator, lambda: check_data(fields))
    with only_run(accelerator, checkpoints):
        this_run = build_run(accelerator, fields, labels, checkpoints)
        start_trackers(accelerator, fields)
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
    run(main)
