"""Train: epochs of steps, each followed by an evaluation on whole dev texts."""

import json
import math
import sys
import time
from pathlib import Path

import torch
from accelerate.utils import send_to_device

from training.common.files import write_text
from training.evaluation.candidates import score_spans
from training.evaluation.scoring import as_spans, score
from training.evaluation.thresholds import fit_thresholds
from training.fitting.averaging import average_weights, files_of
from training.fitting.checkpoint import save_checkpoint
from training.fitting.clipping import clip_gradients
from training.fitting.lora import merged_state_dict
from training.fitting.masked_words import MaskedWords
from training.fitting.run import Run
from training.fitting.state import Progress, checksums, newest_state, save_state
from training.inference.extraction import extract_shared, naming


LOADER_WORKERS = 2  # processes that build batches while an accelerator computes


def train(run: Run) -> Progress:
    """Train for `num_epochs`, or until dev F1 has not risen for `patience` epochs."""
    accelerator, progress, fields = run.accelerator, run.progress, run.fields
    while not progress.is_over(fields.num_epochs, fields.patience):
        train_epoch(run)
        begin = time.perf_counter()
        result = evaluate(run)
        entry = {"epoch": progress.epoch, "loss": progress.loss_sum / run.batches.epoch_size,
                 **{name: result[name] for name in ("precision", "recall", "f1")},
                 "seconds": round(progress.seconds + time.perf_counter() - begin, 1)}  # fmt: skip
        is_best = progress.end_epoch(entry)
        run.log({f"dev/{name}": result[name] for name in ("precision", "recall", "f1")}, step=run.steps_done)
        if accelerator.is_main_process:
            run.bar.write("epoch {epoch}: loss {loss:.3f}, dev P {precision:.4f} R {recall:.4f} F1 {f1:.4f}, "
                          "{seconds} s".format(**entry) + (" (best so far)" if is_best else ""))  # fmt: skip
            if is_best or not progress.best_epoch:  # while nothing is learnt, the latest, so that there is a model
                save_checkpoint(run.eval_model, run.processor, fields.output_dir, fields.save_dtype,
                                advice="; make room and go on with --resume")  # fmt: skip
                folder = Path(fields.output_dir)
                progress.best_files = checksums(folder.glob("model*.safetensors"), folder)
            write_text(run.checkpoints / "history.json", json.dumps(progress.history, indent=1))
        save(run)
    run.bar.close()
    return progress


def train_epoch(run: Run) -> None:
    """Do the remaining steps of the current epoch."""
    accelerator, progress = run.accelerator, run.progress
    begin = time.perf_counter() - progress.seconds
    run.model.train()
    total = torch.zeros((), device=accelerator.device)
    workers = 0 if accelerator.device.type == "cpu" else LOADER_WORKERS
    norm = 0.0
    for turn, (batch, weight) in enumerate(run.batches.loader(progress.epoch, progress.step, workers)):
        with accelerator.accumulate(run.model):
            try:
                loss = run.model(**send_to_device(batch, accelerator.device)).loss * weight
            except FloatingPointError as error:
                raise diverged(run, str(error), turn % accelerator.gradient_accumulation_steps) from error
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = clip_gradients(accelerator, run.model, progress.norms, run.fields.max_norm_ratio)
            run.optimizer.step()
            run.optimizer.zero_grad()
        total += loss.detach()
        if accelerator.sync_gradients:
            # Check before anything is saved. If gradients overflow in float16, the scaler skips the step.
            if not math.isfinite(norm) and not accelerator.optimizer_step_was_skipped:
                raise diverged(run, f"the norm of the gradients is {norm}")
            end_step(run, accelerator.reduce(total, "mean").item() / accelerator.gradient_accumulation_steps)
            total.zero_()
            progress.seconds = time.perf_counter() - begin
            if progress.step % run.fields.save_steps == 0 and progress.step < run.batches.steps:
                save(run)


def save(run: Run) -> None:
    """Save the run's state for `--resume`."""
    needed = files_of(run.checkpoints, run.progress.epoch, run.fields.average_epochs)[:-1]
    save_state(run.accelerator, run.checkpoints, run.progress, run.scheduler, run.resume_signature, needed)


def diverged(run: Run, reason: str, turn: int | None = None) -> FloatingPointError:
    """
    The error of a step whose loss or gradients are not finite; it names the step and its documents.

    Args:
        turn: index of the batch within the step; `None` for the whole step.
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
    """Log a step and advance the scheduler and the progress; `loss` is the mean over its windows."""
    if not math.isfinite(loss):  # a compiled model does not check this itself
        raise diverged(run, f"the loss is {loss}")
    rates = run.scheduler.get_last_lr()
    run.log({"loss": loss, "learning_rate": rates[0], "head_learning_rate": rates[-1]}, step=run.steps_done + 1)
    # A step that float16's scaler skips does not change the learning rate either.
    if not run.accelerator.optimizer_step_was_skipped:
        run.scheduler.step()
    run.progress.loss_sum += loss * run.batches.windows_of_step(run.progress.step)
    run.progress.step += 1
    warning = run.recent_loss.add(loss)
    if warning is not None and run.accelerator.is_main_process:
        run.bar.write(warning, file=sys.stderr)
    run.bar.update()
    run.bar.set_postfix(loss=f"{run.recent_loss.mean:.2f}", refresh=False)


def evaluate(run: Run) -> dict:
    """
    Score the model that this epoch would publish: micro P/R/F1 on whole texts. Processes share the texts.
    """
    model = run.accelerator.unwrap_model(run.model)
    weights = merged_state_dict(model.model if isinstance(model, MaskedWords) else model)
    run.eval_model.load_state_dict(
        average_weights(run.accelerator, run.checkpoints, weights, run.progress.epoch, run.fields.average_epochs)
    )
    return score_fitted(run) if run.fields.fit_thresholds else score_extracted(run)


def score_extracted(run: Run) -> dict:
    """Score what the model extracts from the dev texts, with the thresholds of its config."""
    with naming(run.dev):
        found = extract_shared(run.eval_model, run.processor, [document.text for document in run.dev], progress=True)
    return score([document.entities for document in run.dev], [as_spans(entities) for entities in found])


def score_fitted(run: Run) -> dict:
    """Fit thresholds on the dev texts, put them into the model's config, and score with them."""
    config, start = run.eval_model.config, torch.full((run.eval_model.config.num_labels,), 0.5, dtype=torch.float64)
    with naming(run.dev):
        scored = score_spans(run.eval_model, run.processor, [document.text for document in run.dev], start,
                             progress=True)  # fmt: skip
    fitted = fit_thresholds(scored, run.dev, start.numpy(), config)
    config.threshold = dict(zip(config.labels, fitted.tolist(), strict=True))
    found = scored.entities(scored.choose(fitted, config), config.labels)
    return score([document.entities for document in run.dev], found)
