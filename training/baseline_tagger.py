"""
Train a plain baseline: transformers' token classification on the same encoder, data files and budget as SeNER.

    accelerate launch training/baseline_tagger.py --config training/configs/scirex_small.yaml \
        --train_file train.jsonl --dev_file dev.jsonl --output_dir my-tagger

The fields are those of training/train.py: encoder, epochs, patience, averaging, batches, learning rates, precision,
windows, masking and seed mean the same. Fields of SeNER's own model, `masked_words_weight`, `fit_thresholds`,
`save_steps` and `save_dtype` change nothing. The whole encoder is trained (`lora_rank` 0), and a run cannot be
resumed. If the encoder's position table is shorter than `max_tokens`, windows are as long as the table.

Each word has one BIO tag, on its first token, so that spans cannot overlap. Of overlapping gold spans the outermost is
learnt (of crossing ones the longer); all gold counts in recall. Windows overlap in prediction, and a word's tag is
taken from the window in which it is farthest from an edge: no text is truncated.

The last line printed is one JSON object for dev at the epoch with the best F1: the scores of training/score.py, micro,
macro and per label. `output_dir` gets the same object as `report.json`, and that epoch's model, which
`AutoModelForTokenClassification` loads.
"""

from training.common.start import run


# isort: split
import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, send_to_device, set_seed
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    BatchEncoding,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

from modeling_sener import SenerConfig, SenerProcessor
from modeling_sener.modeling_sener import wrapped_positions
from modeling_sener.tokenization import WORD_PATTERN
from modeling_sener.windows import EncodedDocument, Window, cut_windows, window_bounds
from training.common.cli import keep_freed_memory, on_main_process, set_timeout, use_all_cores
from training.common.files import write_text, writing
from training.common.models import is_checkpoint
from training.common.progress import progress_bar
from training.corpus.batches import Masking, StepBatches
from training.corpus.data import Document, stream_files
from training.corpus.report import DataReport
from training.corpus.windows import StoredWindows, encode_document
from training.evaluation.overlap import match_overlap, touched_words
from training.evaluation.scoring import Entity, match, summarise
from training.fitting.averaging import average_weights
from training.fitting.clipping import NormHistory, clip_gradients
from training.fitting.fields import FieldError, TrainingFields, parse_fields
from training.fitting.lora import merged_state_dict
from training.fitting.run import build_accelerator, build_batches, build_optimizer, outcome, start_trackers
from training.fitting.run_data import check_data, check_findable, write_windows
from training.fitting.state import Progress, exclusive_run


IGNORED = -100  # label without a loss: special tokens, padding, all tokens of a word but its first
PREDICTION_BATCH = 16  # windows


@dataclass
class TaggerRun:
    """
    State shared by the epochs of a run.

    Attributes:
        model: as `Accelerator.prepare` wraps it.
        eval_model: evaluated and saved; its weights are the mean of the last `average_epochs` epochs.
    """

    accelerator: Accelerator
    fields: TrainingFields
    model: torch.nn.Module
    eval_model: PreTrainedModel
    processor: SenerProcessor
    labels: list[str]
    dev: list[Document]
    max_tokens: int
    batches: StepBatches
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    bar: tqdm
    norms: NormHistory = field(default_factory=NormHistory)


def outermost(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """
    Choose spans (first word, last word + 1, label) without overlap: take the longest first, and skip a span that
    overlaps one already taken. Of a span's labels the first is taken. Returns them in text order.
    """
    kept: list[tuple[int, int, str]] = []
    taken = np.zeros(max((last for _, last, _ in spans), default=0), dtype=bool)
    for first, last, label in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
        if not taken[first:last].any():
            taken[first:last] = True
            kept.append((first, last, label))
    return sorted(kept)


def tag_names(labels: list[str]) -> list[str]:
    return ["O", *(f"{mark}-{label}" for label in labels for mark in "BI")]


def encode_tags(spans: list[tuple[int, int, int]], num_words: int) -> np.ndarray:
    """Tags of flat spans (first word, last word + 1, label number), as indices of `tag_names`: *Shape:* (words,)."""
    tags = np.zeros(num_words, dtype=np.int64)
    for first, last, label in spans:
        tags[first:last] = 2 * label + 2
        tags[first] = 2 * label + 1
    return tags


def decode_tags(tags: np.ndarray) -> list[tuple[int, int, int]]:
    """The spans of tags (words,). An I tag that continues no span of its label begins one."""
    spans, first, label = [], None, None
    for word, tag in enumerate([*tags.tolist(), 0]):
        own = (tag - 1) // 2
        if first is not None and (tag == 0 or tag % 2 == 1 or own != label):
            spans.append((first, word, label))
            first = None
        if tag and first is None:
            first, label = word, own
    return spans


def first_tokens(window: Window) -> np.ndarray:
    """The position of each word's first token: *Shape:* (words,)."""
    return np.flatnonzero(np.diff(window.word_index, prepend=0) > 0)


class TagCollator:
    """Windows -> a right-padded batch: `input_ids`, `attention_mask`, `labels` (B, T)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.pad = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def __call__(self, windows: list[Window]) -> BatchEncoding:
        return self.pad([{"input_ids": window.input_ids, "labels": token_labels(window)} for window in windows])


def token_labels(window: Window) -> np.ndarray:
    """The tag of each word on its first token, `IGNORED` elsewhere: *Shape:* (T,)."""
    labels = np.full(len(window.input_ids), IGNORED)
    labels[first_tokens(window)] = encode_tags(window.spans, window.num_words)
    return labels


def build_tagger(backbone: str, labels: list[str]) -> PreTrainedModel:
    """A new tagger in float32, without dropout of the attention weights, as in training/train.py."""
    names = dict(enumerate(tag_names(labels)))
    config = AutoConfig.from_pretrained(backbone, id2label=names, label2id={tag: i for i, tag in names.items()})
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return AutoModelForTokenClassification.from_pretrained(backbone, config=config, dtype=torch.float32)


def longest_input(model: PreTrainedModel, max_tokens: int) -> int:
    """`max_tokens`, or the length of the encoder's position table if that is shorter."""
    positions = wrapped_positions(model, max_tokens, torch.device("cpu"))
    return max_tokens if positions is None else positions.unique().numel()


def store_flat_windows(
    path: Path, fields: TrainingFields, processor: SenerProcessor, labels: list[str], max_tokens: int
) -> list[str]:
    """
    Write the training windows to `path`, with outermost spans only.

    Returns:
        The lines of the report on train and dev files; they count the entities that flat tags leave out.
    """
    report, learnt = DataReport(" ".join(fields.train_file), None), 0

    def choose_outermost(entities: list) -> list:
        nonlocal learnt
        kept = outermost(entities)
        learnt += len(kept)
        return kept

    write_windows(path, fields, processor, labels, max_tokens, None, report, choose_outermost)
    dev_report, findable = DataReport(" ".join(fields.dev_file), None), 0
    for document in stream_files(fields.dev_file, fields.labels, "validation", "reading dev_file"):
        encoded = encode_document(processor, document)
        dev_report.add(document, encoded, labels)
        findable += len(outermost(encoded.entities))
    check_findable(dev_report)
    shorter = f" (max_tokens is {fields.max_tokens:,}; the encoder has no more positions)"
    return [
        *report.lines(),
        f"  flat tags: the outermost {learnt:,} of {report.entities.total():,} entities are learnt",
        *dev_report.lines(),
        f"  flat tags: they can hold {findable:,} of {dev_report.entities.total():,} entities; the others count as "
        "missed, like those off word boundaries",
        f"windows of {max_tokens:,} tokens" + (shorter if max_tokens < fields.max_tokens else ""),
    ]


def kept_words(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """For each of the overlapping windows (first word, last word + 1), its words up to the middle of the overlaps."""
    middles = [(start + end) // 2 for (_, end), (start, _) in zip(cuts, cuts[1:], strict=False)]
    edges = [cuts[0][0], *middles, cuts[-1][1]] if cuts else []
    return list(zip(edges, edges[1:], strict=False))


@torch.inference_mode()
def tag_document(
    model: PreTrainedModel, encoded: EncodedDocument, max_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> np.ndarray:
    """The best tag of each word of a document: *Shape:* (words,)."""
    encoded = replace(encoded, entities=[])
    windows, _, _ = cut_windows(encoded, max_tokens, None, {})
    cuts = window_bounds(encoded.bounds, [], max_tokens - len(encoded.prefix) - len(encoded.suffix), encoded.num_words)
    tags, pad = np.zeros(encoded.num_words, dtype=np.int64), DataCollatorForTokenClassification(tokenizer)
    plan = list(zip(windows, cuts, kept_words(cuts), strict=True))
    for i in range(0, len(plan), PREDICTION_BATCH):
        members = plan[i : i + PREDICTION_BATCH]
        batch = pad([{"input_ids": window.input_ids} for window, _, _ in members])
        best = model(**send_to_device(batch, model.device)).logits.argmax(dim=-1).cpu().numpy()
        for own, (window, (first, _), (a, b)) in zip(best, members, strict=True):
            tags[a:b] = own[first_tokens(window)][a - first : b - first]
    return tags


def find_entities(
    model: PreTrainedModel, processor: SenerProcessor, labels: list[str], documents: list[Document], max_tokens: int
) -> list[list[Entity]]:
    """
    (start, end, label) of each document's entities, in its text's units. Processes share the documents; each gets all
    results.
    """
    state = PartialState()
    model.eval()
    with state.split_between_processes(documents) as share:
        found = []
        for document in progress_bar(share, unit="text", desc="dev", leave=False, disable=not state.is_main_process):
            encoded = encode_document(processor, document)
            offsets = processor([document.text], is_split_into_words=document.is_split).word_offsets[0]
            found.append([(offsets[first][0], offsets[last - 1][1], labels[label]) for first, last, label
                          in decode_tags(tag_document(model, encoded, max_tokens, processor.tokenizer))])  # fmt: skip
    return gather_object(found)


def check_fields(fields: TrainingFields) -> None:
    if fields.lora_rank:
        raise FieldError(f"lora_rank is {fields.lora_rank}: the tagger trains its whole encoder; set it to 0")
    if fields.resume:
        raise FieldError("resume is true: a run of the tagger starts anew; leave it out")
    if is_checkpoint(fields.backbone):
        raise FieldError(f"backbone is {fields.backbone!r}, a SeNER checkpoint: the tagger takes a plain encoder")


def build_tagger_run(accelerator: Accelerator, fields: TrainingFields) -> TaggerRun:
    """Check the data, build the tagger, and print a report on both."""
    labels = on_main_process(accelerator, lambda: check_data(fields)).labels
    set_seed(fields.seed)
    processor = SenerProcessor.from_backbone(fields.backbone, SenerConfig(), fields.word_pattern or WORD_PATTERN)
    model = build_tagger(fields.backbone, labels)
    eval_model = copy.deepcopy(model).to(accelerator.device)
    max_tokens = longest_input(model, fields.max_tokens)
    windows_file = Path(fields.output_dir) / "checkpoints" / "windows.arrow"

    lines = on_main_process(
        accelerator, lambda: store_flat_windows(windows_file, fields, processor, labels, max_tokens)
    )
    accelerator.print("\n".join(lines or []))
    masking, collator = Masking(processor.tokenizer, fields.mask_share), TagCollator(processor.tokenizer)
    batches = build_batches(accelerator, fields, StoredWindows(windows_file), masking, collator)
    accelerator.print(f"parameters: {model.num_parameters():,} trainable")
    model, optimizer = accelerator.prepare(model, build_optimizer(model, model.base_model, fields))
    total = batches.steps * fields.num_epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, round(fields.warmup_share * total), total)
    set_seed(fields.seed, device_specific=True)
    dev = list(stream_files(fields.dev_file, fields.labels, "validation", "reading dev_file"))
    bar = progress_bar(total=total, unit="step", desc="training", disable=not accelerator.is_main_process)
    return TaggerRun(accelerator, fields, model, eval_model, processor, labels, dev, max_tokens, batches, optimizer,
                     scheduler, bar)  # fmt: skip


def train_tagger(run: TaggerRun) -> dict:
    """Train for `num_epochs`, or until dev F1 has not risen for `patience` epochs. Returns the best epoch's result."""
    accelerator, fields, progress, best = run.accelerator, run.fields, Progress(), {}
    while not progress.is_over(fields.num_epochs, fields.patience):
        loss = train_tagger_epoch(run, progress.epoch)
        result = evaluate_tagger(run, progress.epoch)
        accelerator.log({f"dev/{name}": result[name] for name in ("precision", "recall", "f1")},
                        step=progress.epoch * run.batches.steps)  # fmt: skip
        result["epoch"] = progress.epoch
        is_best = progress.end_epoch({"f1": result["f1"]})
        if accelerator.is_main_process:
            run.bar.write("epoch {epoch}: loss {loss:.3f}, dev P {precision:.4f} R {recall:.4f} F1 {f1:.4f}".format(
                **result, loss=loss) + (" (best so far)" if is_best else ""))  # fmt: skip
        if is_best or not progress.best_epoch:  # as in training/train.py
            best = result
            save_tagger(run, result)
    run.bar.close()
    if not progress.best_epoch:
        steps = run.batches.steps * len(progress.history)
        accelerator.print(outcome(progress, fields, steps, takes_checkpoints=False))
    return best


def train_tagger_epoch(run: TaggerRun, epoch: int) -> float:
    """Train for an epoch. Returns the mean loss of the batches; raises `ValueError` if it is not finite."""
    accelerator, losses = run.accelerator, []
    run.model.train()
    for batch, weight in run.batches.loader(epoch):
        with accelerator.accumulate(run.model):
            loss = run.model(**send_to_device(batch, accelerator.device)).loss
            accelerator.backward(loss * weight)
            if accelerator.sync_gradients:
                clip_gradients(accelerator, run.model, run.norms, run.fields.max_norm_ratio)
            run.optimizer.step()
            run.optimizer.zero_grad()
        losses.append(loss.detach())
        if accelerator.sync_gradients:
            if not accelerator.optimizer_step_was_skipped:
                run.scheduler.step()
            run.bar.update()
    mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
    if not np.isfinite(mean):
        raise ValueError(f"the loss is {mean}: lower learning_rate or head_learning_rate, or use mixed_precision no")
    return mean


def evaluate_tagger(run: TaggerRun, epoch: int) -> dict:
    """Score whole dev texts: micro, macro and per label; `overlap` has the same by `evaluation.overlap`."""
    accelerator, fields = run.accelerator, run.fields
    weights = merged_state_dict(accelerator.unwrap_model(run.model))
    run.eval_model.load_state_dict(
        average_weights(accelerator, Path(fields.output_dir) / "checkpoints", weights, epoch, fields.average_epochs)
    )
    found = find_entities(run.eval_model, run.processor, run.labels, run.dev, run.max_tokens)
    outcomes = match([document.entities for document in run.dev], found)
    words = [run.processor([document.text], is_split_into_words=document.is_split).word_offsets[0]
             for document in run.dev]  # fmt: skip
    return summarise(outcomes, {}) | {
        "overlap": summarise(match_overlap(outcomes, *touched_words(outcomes, words)), {}),
        "model": run.fields.output_dir, "data": run.fields.dev_file, "texts": len(run.dev),
        "entities": sum(len(document.entities) for document in run.dev),
    }  # fmt: skip


def save_tagger(run: TaggerRun, result: dict) -> None:
    """Write model, tokenizer and `report.json` to `output_dir`."""
    if run.accelerator.is_main_process:
        folder = Path(run.fields.output_dir)
        with writing(folder):
            run.eval_model.save_pretrained(folder)
            run.processor.tokenizer.save_pretrained(folder)
        write_text(folder / "report.json", json.dumps(result, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    fields = parse_fields(arguments, __doc__)
    check_fields(fields)
    accelerator = build_accelerator(fields)
    use_all_cores(accelerator.device)
    keep_freed_memory(accelerator.device)
    logging.disable_progress_bar()
    with exclusive_run(accelerator, Path(fields.output_dir) / "checkpoints"):
        this_run = build_tagger_run(accelerator, fields)
        start_trackers(accelerator, fields)
        set_timeout(fields.timeout)
        best = train_tagger(this_run)
        accelerator.print(json.dumps(best), flush=True)
        accelerator.wait_for_everyone()  # as in training/train.py
        accelerator.end_training()


if __name__ == "__main__":
    run(main)
