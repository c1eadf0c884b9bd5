"""Build a run: model, optimizer, accelerator, batches, and the state to resume from."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from modeling_sener.starts import count_cells
from training.common.cli import on_main_process
from training.common.files import writing
from training.common.models import is_checkpoint
from training.common.progress import progress_bar
from training.corpus.batches import Collator, Masking, StepBatches
from training.corpus.data import Document, read_documents
from training.corpus.windows import StoredWindows
from training.fitting.checkpoint import load_for_labels
from training.fitting.fields import FieldError, TrainingFields
from training.fitting.lora import add_lora
from training.fitting.masked_words import MaskedWords
from training.fitting.precision import choose_precision, training_device
from training.fitting.recent_loss import RecentLoss
from training.fitting.run_data import DataFacts, store_windows
from training.fitting.state import (
    Progress,
    checksum_of_data,
    load_state,
    newest_state,
    refuse_interrupted_run,
    remove_earlier_run,
)


# Fields that may differ when a run is resumed; all others change its results.
FREE_FIELDS = ("output_dir", "resume", "save_steps", "report_to", "save_dtype", "timeout")
LOGS = "logs"  # the folder of the trackers


@dataclass
class Run:
    """
    State shared by the steps of a run.

    Attributes:
        model: the model in training, as `Accelerator.prepare` wraps it; within `MaskedWords` if masked words are
            predicted.
        eval_model: the model as users get it, after the last evaluated epoch: adapters merged, mean weights of
            `average_epochs` epochs, float32.
        resume_signature: values that must be the same when the run is resumed.
    """

    accelerator: Accelerator
    fields: TrainingFields
    model: torch.nn.Module
    eval_model: SenerModel
    processor: SenerProcessor
    dev: list[Document]
    batches: StepBatches
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    progress: Progress
    checkpoints: Path
    resume_signature: dict
    bar: tqdm
    recent_loss: RecentLoss = field(default_factory=RecentLoss)

    @property
    def steps_done(self) -> int:
        return (self.progress.epoch - 1) * self.batches.steps + self.progress.step

    def log(self, values: dict, step: int) -> None:
        """Send numbers to the trackers."""
        with writing(self.checkpoints / LOGS, "; make room and go on with --resume"):
            self.accelerator.log(values, step=step)


def build_model(fields: TrainingFields, facts: DataFacts) -> tuple[SenerModel, SenerProcessor]:
    """
    Build a model in float32 on the pretrained encoder, or load the checkpoint to train further; and its processor.

    Dropout of the attention weights is off: on the CPU it takes the slow path of `scaled_dot_product_attention`, and
    the hidden states have dropout of their own.
    """
    config_fields = {"cross_blank_lines": facts.cross_blank_lines} | fields.model
    if is_checkpoint(fields.backbone):
        model, processor = load_for_labels(fields.backbone, facts.labels, config_fields)
    else:
        try:
            model = SenerModel.from_backbone(fields.backbone, labels=facts.labels, **config_fields)
            processor = SenerProcessor.from_backbone(fields.backbone, model.config)
        except OSError as error:
            raise FieldError(
                f"backbone is {fields.backbone!r}: {error}\n--backbone FOLDER takes one from disk"
            ) from error
    config = SenerConfig.from_dict(model.config.to_dict())
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config.backbone_config, name):
            setattr(config.backbone_config, name, 0.0)
    quiet = SenerModel(config)
    quiet.load_state_dict(model.state_dict())
    if fields.lora_rank:
        add_lora(quiet, fields.lora_rank, fields.lora_alpha)
    return quiet, SenerProcessor(processor.tokenizer, config, fields.word_pattern or processor.word_pattern)


def build_optimizer(model: torch.nn.Module, encoder: torch.nn.Module, fields: TrainingFields) -> torch.optim.AdamW:
    """Build AdamW: one learning rate for the encoder, one for the head; no weight decay on biases and norms."""
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
    return torch.optim.AdamW(options, fused=True)  # a fourth of the time on the CPU, which does not default to it


def build_accelerator(fields: TrainingFields) -> Accelerator:
    """
    Set up processes, precision, accumulation and trackers. Prints the precision that `auto` takes, and a warning if
    bf16 is emulated.

    Raises:
        FieldError: a tracker is not installed.
    """
    trackers = [] if fields.report_to == "none" else [name.strip() for name in fields.report_to.split(",")]
    precision, line = choose_precision(fields.mixed_precision, training_device())
    accelerator = Accelerator(
        # Without this, processes on a machine without accelerators do not form a group.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with=trackers or None,
        project_dir=Path(fields.output_dir) / "checkpoints",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=2 * fields.timeout))],
    )
    if line is not None:
        accelerator.print(line)
    for name in trackers:
        if name not in ("all", *map(str, accelerator.log_with)):
            raise FieldError(f"report_to is {fields.report_to!r}: {name} is not installed")
    # Set here, as a launcher's configuration would override an argument above.
    accelerator.gradient_accumulation_steps = fields.gradient_accumulation_steps
    if accelerator.state.deepspeed_plugin is not None:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=fields.batch_size,
            gradient_accumulation_steps=fields.gradient_accumulation_steps,
            gradient_clipping=0.0,  # its engine clips at fixed norms only
        )
    return accelerator


def build_batches(
    accelerator: Accelerator, fields: TrainingFields, windows: StoredWindows, masking: Masking, collator: Callable
) -> StepBatches:
    """This process's batches."""
    return StepBatches(
        windows, masking, collator, seed=fields.seed, batch_size=fields.batch_size,
        accumulation=fields.gradient_accumulation_steps, empty_window_share=fields.empty_window_share,
        min_epoch_steps=fields.min_epoch_steps, process=accelerator.process_index, processes=accelerator.num_processes,
    )  # fmt: skip


def start_labels(accelerator: Accelerator, fields: TrainingFields, model: SenerModel, windows: StoredWindows) -> None:
    """Start a new model's labels at their shares of the training cells. Print the labels without an example."""
    drawn = np.where(windows.is_empty, fields.empty_window_share, 1.0)
    positive, valid = count_cells(windows.num_words, windows.spans(), model.config, drawn)
    if not is_checkpoint(fields.backbone):
        model.set_biases(positive, valid)
    absent = [label for label, count in zip(model.config.labels, positive, strict=True) if count == 0]
    if absent:
        accelerator.print(f"note: no training example of {', '.join(absent)}: remove such a label, or add examples")


def build_run(accelerator: Accelerator, fields: TrainingFields, facts: DataFacts, checkpoints: Path) -> Run:
    """Build the model, print a report on it and on the data, and load the state if the run is resumed."""
    set_seed(fields.seed)
    model, processor = build_model(fields, facts)
    eval_model = SenerModel(model.config).eval().to(accelerator.device)
    # One process chooses: on a network file system the others may not see the newest state yet.
    state = on_main_process(accelerator, lambda: newest_state(checkpoints)) if fields.resume else None
    windows_file = checkpoints / "windows.arrow"

    def prepare_folder() -> list[str]:
        lines = []
        if not fields.resume:
            refuse_interrupted_run(checkpoints)
        # The states of an earlier run must not be resumed later.
        if state is None and remove_earlier_run(checkpoints):
            lines.append(f"{checkpoints}: removed what an earlier run had left there")
        with writing(windows_file):
            return lines + store_windows(windows_file, fields, processor, model.config)

    accelerator.print("\n".join(on_main_process(accelerator, prepare_folder) or []))
    windows = StoredWindows(windows_file)
    start_labels(accelerator, fields, model, windows)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable
    accelerator.print(f"parameters: {trainable:,} trainable, {frozen:,} frozen")

    config = model.config
    masking = Masking(processor.tokenizer, fields.mask_share, guessed=fields.masked_words_weight > 0)
    collator = Collator(processor.tokenizer.pad_token_id, config.span_window, config.triangles, config.num_labels)
    batches = build_batches(accelerator, fields, windows, masking, collator)
    if batches.passes > 1:
        accelerator.print(f"an epoch: {batches.steps:,} steps, {batches.passes:,} passes over the training windows "
                          f"(min_epoch_steps {fields.min_epoch_steps:,})")  # fmt: skip
    backbone = model.backbone
    if fields.masked_words_weight > 0:
        model = MaskedWords(model, fields.masked_words_weight)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, backbone, fields))
    total = batches.steps * fields.num_epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, round(fields.warmup_share * total), total)
    set_seed(fields.seed, device_specific=True)  # each process draws its own dropout
    resume_signature = {name: value for name, value in asdict(fields).items() if name not in FREE_FIELDS}
    dev = [
        document for file in fields.dev_file for document in read_documents(file, fields.labels, split="validation")
    ]
    resume_signature |= {
        "labels": facts.labels,
        "windows": len(batches.windows),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,  # the choice of `auto` may differ on another machine
        "checksum of the data": checksum_of_data(windows_file, dev),
    }
    progress = Progress()
    if state is not None:
        progress = load_state(accelerator, state, scheduler, resume_signature)
        accelerator.print(f"resumed from {state}")
    bar = progress_bar(total=total, initial=(progress.epoch - 1) * batches.steps + progress.step, unit="step",
                       desc="training", disable=not accelerator.is_main_process)  # fmt: skip
    return Run(accelerator, fields, model, eval_model, processor, dev, batches, optimizer, scheduler, progress,
               checkpoints, resume_signature, bar)  # fmt: skip


def outcome(progress: Progress, fields: TrainingFields, steps: int, takes_checkpoints: bool = True) -> str:
    """
    The last line of a run; if nothing was learnt, with what usually helps.

    Args:
        takes_checkpoints: whether the run could also have started from a trained checkpoint.
    """
    saved = f"saved in {fields.output_dir}"
    if progress.best_epoch:
        fitted = ", with thresholds fitted on it" if fields.fit_thresholds else ""
        return f"best F1 on dev{fitted}: {progress.best_f1:.4f} (epoch {progress.best_epoch}); {saved}"
    trained = ""
    if takes_checkpoints and not is_checkpoint(fields.backbone):
        trained = "start from a trained checkpoint (--backbone biomedical) instead of a plain encoder; "
    return (
        f"nothing was learnt: F1 on dev was 0 in all {len(progress.history):,} epochs; the last one's weights are "
        f"{saved}. What usually helps: take more steps than these {steps:,} (raise num_epochs and patience, lower "
        f"gradient_accumulation_steps); {trained}raise head_learning_rate ({fields.head_learning_rate:g}), or lower "
        "both learning rates if the loss rises; read the notes on the data above"
    )


def start_trackers(accelerator: Accelerator, fields: TrainingFields) -> None:
    """Start the trackers and give them the fields, as the numbers and strings that they take."""
    values = {**asdict(fields), **fields.model, "mixed_precision": accelerator.mixed_precision}
    del values["model"]
    simple = {name: value if isinstance(value, int | float | str) else json.dumps(value)
              for name, value in values.items()}  # fmt: skip
    accelerator.init_trackers(LOGS, config=simple)
