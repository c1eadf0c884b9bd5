"""Save the state of a run, and load it for `--resume`, whenever the run was killed."""

import json
import os
import random
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, load
from filelock import BaseFileLock

from training.common.cli import first_line, on_main_process
from training.common.files import checksum_of_file, checksum_of_json, try_lock, writing
from training.corpus.data import Document
from training.fitting.clipping import NormHistory


PROGRESS = "progress.json"
STATE_NAME = r"state_\d{4,}_\d{7,}"
LOCK = "lock"  # stays there unlocked: a run that removed it could let in two others


class ResumeError(ValueError):
    """A run cannot be resumed, or not in this folder."""


@dataclass
class Progress:
    """
    The progress of a run.

    Attributes:
        epoch: the current one, from 1.
        step: steps of it that are done.
        loss_sum: sum of the loss of the windows seen in it.
        best_f1, best_epoch: 0 while no epoch has found anything right.
        best_files: size and CRC-32 of the weights that were published at the end of the best epoch (while there is
            none, of the last one), by name.
        history: an entry for each epoch that has been evaluated.
        norms: of the gradients so far.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_f1: float = 0.0
    best_epoch: int = 0
    best_files: dict[str, list[int]] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    norms: NormHistory = field(default_factory=NormHistory)

    def is_over(self, num_epochs: int, patience: int) -> bool:
        done = self.epoch - 1
        return done >= num_epochs or done - self.best_epoch >= patience

    def end_epoch(self, entry: dict) -> bool:
        """Note an epoch; whether it is the best so far. One that finds nothing right is not."""
        is_best = entry["f1"] > self.best_f1
        if is_best:
            self.best_f1, self.best_epoch = entry["f1"], self.epoch
        self.history.append(entry)
        self.epoch, self.step, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0
        return is_best


@contextmanager
def exclusive_run(accelerator: Accelerator, checkpoints: Path) -> Iterator[None]:
    """
    Keep other runs out of a folder, which is created if it is missing.

    Raises:
        ResumeError: another run uses it.
    """
    locks: list[BaseFileLock] = []

    def enter():
        with writing(checkpoints):
            checkpoints.mkdir(parents=True, exist_ok=True)
            lock = try_lock(checkpoints / LOCK)
        if lock is None:
            raise ResumeError(f"{checkpoints.parent}: another run is at work in it: wait for its end, end it, or give "
                              "another output_dir")  # fmt: skip
        locks.append(lock)

    try:
        on_main_process(accelerator, enter)
        yield
    finally:
        for lock in locks:
            lock.release()


def refuse_interrupted_run(checkpoints: Path) -> None:
    """Raise `ResumeError` if `checkpoints` holds the state of a run that was ended before its last epoch."""
    state = newest_state(checkpoints)
    if state is None:
        return
    content = read_progress(state)
    progress, fields = Progress(**content["progress"]), content["resume_signature"]
    if not progress.is_over(fields["num_epochs"], fields["patience"]):
        raise ResumeError(f"{checkpoints.parent} holds a run that was ended in epoch {progress.epoch}, after step "
                          f"{progress.step:,}: go on with --resume, or remove {checkpoints}")  # fmt: skip


def remove_earlier_run(checkpoints: Path) -> bool:
    """Remove all files of an earlier run, except for the lock. Returns whether there were any."""
    left = [path for path in checkpoints.iterdir() if path.name != LOCK]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return bool(left)


def checksum_of_data(windows: Path, dev: Iterable[Document]) -> int:
    """CRC-32 of the training windows and dev documents."""
    total = checksum_of_file(windows)
    for document in dev:
        total = zlib.crc32(repr(document).encode("utf-8", "surrogatepass"), total)
    return total


def states(checkpoints: Path) -> list[Path]:
    """The states below `checkpoints`, oldest first. A state is complete when it gets its name."""
    found = [path for path in checkpoints.glob("state_*") if re.fullmatch(STATE_NAME, path.name)]
    return sorted(found, key=lambda path: [int(number) for number in path.name.split("_")[1:]])


def newest_state(checkpoints: Path) -> Path | None:
    """The newest state below `checkpoints`, if there is one."""
    return next(reversed(states(checkpoints)), None)


def save_state(accelerator: Accelerator, checkpoints: Path, progress: Progress, scheduler, resume_signature: dict,
               beside: Iterable[Path] = ()) -> None:  # fmt: skip
    """
    Save all that the run needs to go on exactly as if it had not stopped: weights, optimizer, random states of each
    process, scheduler, progress; and last, the checksums of all these files.

    It is written aside and renamed, so that a state is complete or absent. The state before it is kept, in case the
    new one is damaged later; older ones are removed.

    Args:
        resume_signature: values that must be the same when the run is resumed.
        beside: files outside of the state that a resumed run also needs.

    Raises:
        WriteError: a file cannot be written, as on a full disk; the earlier states are kept.
    """
    aside, state = checkpoints / "writing", checkpoints / f"state_{progress.epoch:04d}_{progress.step:07d}"
    older = states(checkpoints)
    with writing(state, f"; make room and go on with --resume{' from the state before it' if older else ''}"):
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            content = {
                "progress": asdict(progress),
                "scheduler": scheduler.state_dict(),
                "resume_signature": resume_signature,
                "files": checksums([*files_in(aside, accelerator.num_processes), *beside], aside),
            }
            content = {"checksum": checksum_of_json(content), "content": content}
            (aside / PROGRESS).write_text(json.dumps(content, indent=1), encoding="utf-8")
            aside.rename(state)
            for folder in older[:-1]:
                shutil.rmtree(folder)
        accelerator.wait_for_everyone()


def files_in(folder: Path, processes: int) -> list[Path]:
    """
    The files of a state.

    Raises:
        FileNotFoundError: the random states of a process are missing: it writes into another folder.
    """
    for number in range(processes):
        (folder / random_states(number)).stat()
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def checksums(files: Iterable[Path], folder: Path) -> dict[str, list[int]]:
    """`[size, CRC-32]` of each file, by its path relative to `folder`."""
    return {Path(os.path.relpath(file, folder)).as_posix(): [file.stat().st_size, checksum_of_file(file)]
            for file in files}  # fmt: skip


def random_states(process: int) -> str:
    """The name of Accelerate's file with the random states of a process."""
    return f"random_states_{process}.pkl"


def read_progress(folder: Path) -> dict:
    """
    The content of a state's `progress.json`: `progress`, `scheduler`, `resume_signature`, `files`.

    Raises:
        ResumeError: it is damaged.
    """
    try:
        written = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        content, expected = written["content"], written["checksum"]
    except OSError as error:
        raise ResumeError(f"{folder / PROGRESS}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResumeError(f"{folder / PROGRESS}: is damaged, or of another version of this program") from error
    if checksum_of_json(content) != expected:
        raise ResumeError(f"{folder / PROGRESS}: is damaged: its content is not what was saved")
    return content


def check_checksums(folder: Path, files: dict[str, list[int]]) -> None:
    """
    Check that each file has the size and CRC-32 of when it was saved.

    Raises:
        ResumeError: a file is missing, cannot be read, or has other content.
    """
    for name, (size, checksum_then) in files.items():
        file = Path(os.path.normpath(folder / name))
        try:
            found = file.stat().st_size
            is_same = found == size and checksum_of_file(file) == checksum_then
        except OSError as error:
            raise ResumeError(f"{file}: cannot be read ({error.strerror})") from error
        if not is_same:
            sizes = f"it has {found:,} bytes, {size:,} were saved" if found != size else "its bytes are others"
            raise ResumeError(f"{file}: is damaged, or of another run: {sizes}")


def check_best(progress: Progress, folder: Path) -> None:
    """
    Check, when a run is over, that `folder` has the weights that were published at the end of the best epoch.

    Raises:
        ResumeError: it has others; the run cannot produce them again.
    """
    try:
        check_checksums(folder, progress.best_files)
    except ResumeError as error:
        which = f"epoch {progress.best_epoch}, the best one" if progress.best_epoch else "the last epoch"
        raise ResumeError(f"{error}, in {which}; start the run again without "
                          "--resume") from error  # fmt: skip


def resume_advice(folder: Path) -> str:
    """Advice for the user if the state `folder` cannot be loaded."""
    every = states(folder.parent)
    for state in reversed(every[: every.index(folder)]):
        try:
            check_checksums(state, read_progress(state)["files"])
        except ResumeError:
            continue
        return f"delete {folder} to go on from the state before it, {state.name}, which is whole"
    return "no state before it is whole: start the run again without --resume"


def load_state(accelerator: Accelerator, folder: Path, scheduler, resume_signature: dict) -> Progress:
    """
    Load a state: weights, optimizer, random states and scheduler.

    Raises:
        ResumeError: the state belongs to a run with other fields, data or processes, or it is damaged. The message
            names a damaged file, and the state before it if that is whole; nothing is loaded then.
    """

    def read_checked() -> dict:
        try:
            content = read_progress(folder)
            check_checksums(folder, content["files"])
        except ResumeError as error:
            raise ResumeError(f"{error}; {resume_advice(folder)}") from error
        for name, value in content["resume_signature"].items():
            if resume_signature.get(name) != value:
                raise ResumeError(
                    f"{folder}: {name} was {value!r} in this run and is {resume_signature.get(name)!r} now: give the "
                    "same value to go on, or start another run in another output_dir"
                )
        return content

    content = on_main_process(accelerator, read_checked)
    accelerator.load_state(str(folder))
    check_random_states(accelerator, folder)
    scheduler.load_state_dict(content["scheduler"])
    return Progress(**{**content["progress"], "norms": NormHistory(**content["progress"]["norms"])})


def check_random_states(accelerator: Accelerator, folder: Path) -> None:
    """
    Check that every process has the random states that were saved: Accelerate reports no error if it cannot restore
    them.

    Raises:
        ResumeError: a process has others.
    """
    file, fault = folder / random_states(accelerator.process_index), ""
    now = {"random_state": random.getstate(), "numpy_random_seed": np.random.get_state(),
           "torch_manual_seed": torch.get_rng_state()}  # fmt: skip
    if torch.cuda.is_available():
        now["torch_cuda_manual_seed"] = torch.cuda.get_rng_state_all()
    try:
        saved = load(file)
        missing = [name for name, value in now.items() if name not in saved or not is_equal(saved[name], value)]
        fault = f"{', '.join(missing)} could not be put back" if missing else ""
    except (OSError, RuntimeError, ValueError) as error:
        fault = f"cannot be read ({first_line(error)})"
    faults = [each for each in gather_object([fault and f"{file}: {fault}"]) if each]

    def raise_first():
        if faults:
            raise ResumeError(f"{faults[0]}: go on with the devices and the versions of torch and numpy that the run "
                              "was started with")  # fmt: skip

    on_main_process(accelerator, raise_first)


def is_equal(state, other) -> bool:
    """Whether two random states are equal: numbers, arrays and tensors in tuples and lists."""
    if isinstance(state, tuple | list):
        return len(state) == len(other) and all(map(is_equal, state, other))
    return np.array_equal(state, other)
