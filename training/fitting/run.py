"""What a run is built of: model, optimizer, accelerator, batches, and the state that it is resumed from."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training.common.cli import on_main_process
from training.common.files import writing
from training.corpus.batches import Collator, Masking, StepBatches
from training.corpus.data import Document, read_documents
from training.corpus.windows import StoredWindows
from training.fitting.checkpoint import is_checkpoint, load_for_labels
from training.fitting.fields import FieldError, TrainingFields
from training.fitting.lora import add_lora
from training.fitting.masked_words import MaskedWords
from training.fitting.precision import choose_precision, training_device
from training.fitting.run_data import store_windows
from training.fitting.starts import count_cells, set_starts
from training.fitting.state import Progress, checksum, clear, load_state, newest_state


# Fields that may differ where a run is resumed; all others change what it computes.
FREE_FIELDS = ("output_dir", "resume", "save_steps", "report_to", "save_dtype", "timeout")
LOGS = "logs"  # the folder of the trackers


@dataclass
class Run:
    """
    What the steps of a run share.

    Attributes:
        model: the model in training, within `MaskedWords` where it guesses words, as `Accelerator.prepare` wraps it.
        eval_model: the model as users get it, of the last epoch that was evaluated: whole, adapters merged, the mean
            of `average_epochs` epochs, in float32.
        resume_signature: what must be the same where the run is resumed.
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
    Processes, precision, accumulation and trackers. Prints which precision `auto` takes, and a warning where bf16 is
    emulated.

    Raises:
        FieldError: a tracker that is not installed.
    """
    trackers = [] if fields.report_to == "none" else [name.strip() for name in fields.report_to.split(",")]
    precision, line = choose_precision(fields.mixed_precision, training_device())
    accelerator = Accelerator(
        # Without this, several processes on a machine without accelerators do not know of each other.
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
    # Set here, as a launcher's configuration would win over an argument above.
    accelerator.gradient_accumulation_steps = fields.gradient_accumulation_steps
    if accelerator.state.deepspeed_plugin is not None:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=fields.batch_size,
            gradient_accumulation_steps=fields.gradient_accumulation_steps,
            gradient_clipping=0.0,  # its engine knows fixed norms alone
        )
    return accelerator


def build_batches(
    accelerator: Accelerator, fields: TrainingFields, windows: StoredWindows, masking: Masking, collator: Callable
) -> StepBatches:
    """This process's batches."""
    return StepBatches(
        windows, masking, collator, seed=fields.seed, batch_size=fields.batch_size,
        accumulation=fields.gradient_accumulation_steps, empty_window_share=fields.empty_window_share,
        process=accelerator.process_index, processes=accelerator.num_processes,
    )  # fmt: skip


def start_labels(accelerator: Accelerator, fields: TrainingFields, model: SenerModel, windows: StoredWindows) -> None:
    """Start a new model's labels at their shares of the training data, and print which have no example there."""
    positive, valid = count_cells(windows, model.config, fields.empty_window_share)
    if not is_checkpoint(fields.backbone):
        set_starts(model, positive, valid)
    absent = [label for label, count in zip(model.config.labels, positive, strict=True) if count == 0]
    if absent:
        accelerator.print(f"note: no training example of {', '.join(absent)}: remove such a label, or add examples")


def build_run(accelerator: Accelerator, fields: TrainingFields, labels: list[str], checkpoints: Path) -> Run:
    """Build the model, print what is in it and in the data, and take up the state that a run is resumed from."""
    set_seed(fields.seed)
    model, processor = build_model(fields, labels)
    eval_model = SenerModel(model.config).eval().to(accelerator.device)
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
    windows = StoredWindows(windows_file)
    start_labels(accelerator, fields, model, windows)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable
    accelerator.print(f"parameters: {trainable:,} trainable, {frozen:,} frozen")

    config = model.config
    masking = Masking(processor.tokenizer, fields.mask_share, guessed=fields.masked_words_weight > 0)
    collator = Collator(processor.tokenizer.pad_token_id, config.span_window, config.triangles, config.num_labels)
    batches = build_batches(accelerator, fields, windows, masking, collator)
    backbone = model.backbone
    if fields.masked_words_weight > 0:
        model = MaskedWords(model, fields.masked_words_weight)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, backbone, fields))
    total = batches.steps * fields.num_epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, round(fields.warmup_share * total), total)
    set_seed(fields.seed, device_specific=True)  # each process has a dropout of its own
    resume_signature = {name: value for name, value in asdict(fields).items() if name not in FREE_FIELDS}
    dev = [
        document for file in fields.dev_file for document in read_documents(file, fields.labels, split="validation")
    ]
    resume_signature |= {"labels": labels, "windows": len(batches.windows), "processes": accelerator.num_processes,
              "mixed_precision": accelerator.mixed_precision,  # what `auto` takes may differ on another machine
              "checksum of the data": checksum(windows_file, dev)}  # fmt: skip
    progress = Progress()
    if state is not None:
        progress = load_state(accelerator, state, scheduler, resume_signature)
        accelerator.print(f"resumed from {state}")
    bar = tqdm(total=total, initial=(progress.epoch - 1) * batches.steps + progress.step, unit="step", desc="training",
               disable=not accelerator.is_main_process)  # fmt: skip
    return Run(accelerator, fields, model, eval_model, processor, dev, batches, optimizer, scheduler, progress,
               checkpoints, resume_signature, bar)  # fmt: skip


def start_trackers(accelerator: Accelerator, fields: TrainingFields) -> None:
    """Trackers take numbers and strings."""
    values = {**asdict(fields), **fields.model, "mixed_precision": accelerator.mixed_precision}
    del values["model"]
    simple = {name: value if isinstance(value, int | float | str) else json.dumps(value)
              for name, value in values.items()}  # fmt: skip
    accelerator.init_trackers(LOGS, config=simple)
