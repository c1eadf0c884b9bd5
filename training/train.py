"""
Train SeNER on a pretrained encoder.

    accelerate launch training/train.py --config training/configs/scirex_small.yaml \
        --train_file train.jsonl --dev_file dev.jsonl --output_dir my-model

Any field of the YAML file can be given on the command line as well (`--field value`). When the run ends, `output_dir`
is a folder that `AutoModel.from_pretrained(output_dir, trust_remote_code=True)` loads, or that can be pushed to the
Hub: the weights of the epoch with the best F1 on dev. `--resume` goes on from the newest checkpoint.
"""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup
from transformers.utils import logging

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training.checkpoint import save_checkpoint
from training.cli import run, use_all_cores
from training.data import DataError, Document, labels_of, read_documents
from training.fields import TrainingFields, parse_fields
from training.inference import extract_shared
from training.lora import add_lora
from training.report import report_on
from training.scoring import as_spans, score
from training.windows import Collator, LengthBatches, WindowDataset, cut_windows, encode_document


@dataclass
class Progress:
    """Where a run stands at the end of an epoch; saved and restored with the rest of its state."""

    epochs_done: int = 0
    best_f1: float = -1.0
    best_epoch: int = 0
    history: list[dict] = field(default_factory=list)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)

    def add(self, entry: dict) -> bool:
        """Note an epoch; whether it is the best so far. While nothing right is found at all, the latest one is."""
        self.epochs_done = entry["epoch"]
        self.history.append(entry)
        if 0 < entry["f1"] <= self.best_f1 or entry["f1"] < self.best_f1:
            return False
        self.best_f1, self.best_epoch = entry["f1"], entry["epoch"]
        return True


def build_model(fields: TrainingFields, labels: list[str]) -> tuple[SenerModel, SenerProcessor]:
    """
    A new model on the pretrained encoder, in float32, and its processor.

    Dropout of the attention weights is switched off: on the CPU it takes the slow path of
    `scaled_dot_product_attention`, and the hidden states have dropout of their own.
    """
    model = SenerModel.from_backbone(fields.backbone, labels=labels, **fields.model)
    config = SenerConfig.from_dict(model.config.to_dict())
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config.backbone_config, name):
            setattr(config.backbone_config, name, 0.0)
    quiet = SenerModel(config)
    quiet.load_state_dict(model.state_dict())
    processor = SenerProcessor.from_backbone(fields.backbone, config)
    if fields.lora_rank:
        add_lora(quiet, fields.lora_rank, fields.lora_alpha)
    return quiet, processor


def build_data(
    fields: TrainingFields, processor: SenerProcessor, config: SenerConfig, train: list[Document], dev: list[Document]
) -> tuple[WindowDataset, list[str]]:
    """Training windows, and the lines of the data report."""
    labels, window = config.labels, config.span_window
    encoded = [encode_document(processor, document) for document in train]
    report = report_on(fields.train_file, train, encoded, labels, window)
    windows = []
    for document in encoded:
        cut, without_window, cut_rows = cut_windows(document, fields.max_tokens, window, config.label2id)
        windows += [piece for piece in cut if piece.rows]
        report.without_window += without_window
        report.cut_rows += cut_rows
    report.windows = len(windows)
    if not windows:
        raise DataError(f"{fields.train_file}: text: no text has a single word")
    encoded_dev = [encode_document(processor, document) for document in dev]
    lines = report.lines() + report_on(fields.dev_file, dev, encoded_dev, labels, window).lines()
    return WindowDataset(windows, processor.tokenizer, fields.mask_share, fields.seed), lines


def build_optimizer(model: SenerModel, fields: TrainingFields) -> torch.optim.AdamW:
    """AdamW: one learning rate for the encoder, one for the head; no weight decay on biases and norms."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.dim() > 1), []).append(parameter)
    return torch.optim.AdamW([
        {
            "params": parameters,
            "lr": fields.learning_rate if is_backbone else fields.head_learning_rate,
            "weight_decay": fields.weight_decay if decays else 0.0,
        }
        for (is_backbone, decays), parameters in groups.items()
    ])  # fmt: skip


def evaluate(model: SenerModel, processor: SenerProcessor, dev: list[Document]) -> dict:
    """Micro P/R/F1 on whole texts, by the path that users take; each process does its share."""
    found = extract_shared(model, processor, [document.text for document in dev], progress=True)
    return score([document.entities for document in dev], [as_spans(entities) for entities in found])


def save_state(accelerator: Accelerator, checkpoints: Path, epochs_done: int) -> None:
    """Everything that `--resume` needs, written aside and renamed; older states go when the new one is there."""
    aside = checkpoints / "writing"
    accelerator.save_state(str(aside))
    if accelerator.is_main_process:
        older = saved_states(checkpoints)
        aside.rename(checkpoints / f"epoch_{epochs_done:04d}")
        for folder in older:
            shutil.rmtree(folder)
    accelerator.wait_for_everyone()


def saved_states(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("epoch_*"))


def train_epoch(accelerator, model, loader, optimizer, scheduler, fields, bar) -> float:
    """One pass over the training windows; the mean loss of a text."""
    model.train()
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), fields.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]}: lower learning_rate or head_learning_rate, or use "
                             "mixed_precision no")  # fmt: skip
        if accelerator.sync_gradients:
            scheduler.step()
            bar.update()
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.2f}", refresh=False)
    return sum(losses) / len(losses)


def prepare(
    accelerator: Accelerator, fields: TrainingFields
) -> tuple[SenerModel, SenerProcessor, WindowDataset, list[Document]]:
    """Read and check the data, build the model, print what is in either; the dev documents come last."""
    train_documents = read_documents(fields.train_file, fields.labels)
    dev_documents = read_documents(fields.dev_file, fields.labels)
    labels = fields.labels or labels_of(train_documents)
    if not labels:
        raise DataError(f"{fields.train_file}: no entity in this file, and no labels given")
    model, processor = build_model(fields, labels)
    dataset, report = build_data(fields, processor, model.config, train_documents, dev_documents)
    accelerator.print("\n".join(report))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable
    accelerator.print(f"parameters: {trainable:,} trainable, {frozen:,} frozen")
    return model, processor, dataset, dev_documents


def train(accelerator: Accelerator, fields: TrainingFields) -> Progress:
    """The whole run."""
    set_seed(fields.seed)
    model, processor, dataset, dev_documents = prepare(accelerator, fields)
    sampler = LengthBatches([len(window.input_ids) for window in dataset.windows], fields.batch_size, fields.seed)
    collator = Collator(processor.tokenizer.pad_token_id, model.config.span_window, model.config.num_labels)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collator)
    model, optimizer, loader = accelerator.prepare(model, build_optimizer(model, fields), loader)
    steps_per_epoch = math.ceil(len(loader) / fields.gradient_accumulation_steps)
    total = steps_per_epoch * fields.num_epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, round(fields.warmup_share * total), total)
    progress = Progress()
    accelerator.register_for_checkpointing(scheduler, progress)
    output, checkpoints = Path(fields.output_dir), Path(fields.output_dir) / "checkpoints"
    start_or_resume(accelerator, fields.resume, checkpoints)

    bar = tqdm(total=total, initial=steps_per_epoch * progress.epochs_done, unit="step", desc="training",
               disable=not accelerator.is_main_process)  # fmt: skip
    while progress.epochs_done < fields.num_epochs and progress.epochs_done - progress.best_epoch < fields.patience:
        epoch, begin = progress.epochs_done + 1, time.perf_counter()
        # accelerate's loader counts its passes itself and tells the sampler, but begins at 0 when a run is resumed.
        for part in (loader, sampler, dataset):
            part.set_epoch(epoch)
        loss = train_epoch(accelerator, model, loader, optimizer, scheduler, fields, bar)
        plain = accelerator.unwrap_model(model)
        result = evaluate(plain, processor, dev_documents)
        entry = {"epoch": epoch, "loss": loss, **{name: result[name] for name in ("precision", "recall", "f1")},
                 "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip
        is_best = progress.add(entry)
        accelerator.print("epoch {epoch}: loss {loss:.3f}, dev P {precision:.4f} R {recall:.4f} F1 {f1:.4f}, "
                          "{seconds} s".format(**entry) + (" (best so far)" if is_best else ""))  # fmt: skip
        if accelerator.is_main_process:
            if is_best:
                save_checkpoint(plain, processor, output, fields.save_dtype)
            (checkpoints / "history.json").write_text(json.dumps(progress.history, indent=1), encoding="utf-8")
        accelerator.wait_for_everyone()
        save_state(accelerator, checkpoints, epoch)
    bar.close()
    return progress


def start_or_resume(accelerator: Accelerator, resume: bool, checkpoints: Path) -> None:
    """Load the newest saved state, or make way for a new run: an old run's states must not be resumed later."""
    states = saved_states(checkpoints)
    if resume and states:
        accelerator.load_state(str(states[-1]))
        accelerator.print(f"resumed from {states[-1]}")
    elif accelerator.is_main_process:
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
    accelerator.wait_for_everyone()


def main(arguments: list[str] | None = None) -> None:
    fields = parse_fields(arguments, __doc__)
    accelerator = Accelerator(
        mixed_precision=fields.mixed_precision, gradient_accumulation_steps=fields.gradient_accumulation_steps
    )
    use_all_cores(accelerator.device)
    logging.disable_progress_bar()  # of loading and saving: the bar of the run is enough
    progress = train(accelerator, fields)
    accelerator.print(f"best F1 on dev: {progress.best_f1:.4f} (epoch {progress.best_epoch}); saved in "
                      f"{fields.output_dir}")  # fmt: skip
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
