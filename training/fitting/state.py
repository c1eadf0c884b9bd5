"""Where a run stands, on disk: what `--resume` goes on from, whenever the run was killed."""

import json
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from accelerate import Accelerator

from training.common.cli import on_main_process
from training.common.files import lock, writing
from training.corpus.data import Document
from training.fitting.clipping import NormHistory


PROGRESS = "progress.json"
LOCK = "lock"  # stays when it is empty: whoever removed it would let two runs in


class ResumeError(ValueError):
    """A run that cannot go on as it was, or not in this folder."""


@dataclass
class Progress:
    """
    Where a run stands.

    Attributes:
        epoch: the current one, from 1.
        step: steps of it that are done.
        loss_sum: sum of the loss of the windows seen in it.
        history: an entry for each epoch that has been evaluated.
        norms: of the gradients so far.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_f1: float = -1.0
    best_epoch: int = 0
    history: list[dict] = field(default_factory=list)
    norms: NormHistory = field(default_factory=NormHistory)

    def is_over(self, num_epochs: int, patience: int) -> bool:
        done = self.epoch - 1
        return done >= num_epochs or done - self.best_epoch >= patience

    def end_epoch(self, entry: dict) -> bool:
        """Note an epoch; whether it is the best so far. While nothing right is found at all, the latest one is."""
        is_best = entry["f1"] > self.best_f1 or entry["f1"] == self.best_f1 == 0
        if is_best:
            self.best_f1, self.best_epoch = entry["f1"], self.epoch
        self.history.append(entry)
        self.epoch, self.step, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0
        return is_best


@contextmanager
def only_run(accelerator: Accelerator, checkpoints: Path) -> Iterator[None]:
    """
    Keep other runs out of a folder, which is made where it is missing.

    Raises:
        ResumeError: another run has it.
    """
    files: list[BinaryIO] = []

    def enter():
        with writing(checkpoints):
            checkpoints.mkdir(parents=True, exist_ok=True)
            files.append(open(checkpoints / LOCK, "ab"))
        if not lock(files[0]):
            raise ResumeError(f"{checkpoints.parent}: another run is at work in it: wait for its end, end it, or give "
                              "another output_dir")  # fmt: skip

    try:
        on_main_process(accelerator, enter)
        yield
    finally:
        for file in files:
            file.close()


def clear(checkpoints: Path) -> bool:
    """Remove what an earlier run has left, its states above all; whether there was anything."""
    left = [path for path in checkpoints.iterdir() if path.name != LOCK]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return bool(left)


def checksum(windows: Path, dev: Iterable[Document]) -> int:
    """A number that is another one where the training windows or the dev documents are others."""
    total = 0
    with windows.open("rb") as file:
        while block := file.read(2**20):
            total = zlib.crc32(block, total)
    for document in dev:
        total = zlib.crc32(repr(document).encode("utf-8", "surrogatepass"), total)
    return total


def newest_state(checkpoints: Path) -> Path | None:
    """The newest complete state below `checkpoints`."""
    return max(checkpoints.glob("state_*"), default=None)


def save_state(accelerator: Accelerator, checkpoints: Path, progress: Progress, scheduler, terms: dict) -> None:
    """
    Save everything that the run needs to go on exactly as if it had never stopped: weights, optimizer, random numbers
    of each process, scheduler, progress.

    It is written aside and renamed, so that a state is complete or not there; older ones go when it is there.

    Args:
        terms: what must be the same when the run is resumed.

    Raises:
        WriteError: the disk is full, for one; the newest state of before is still there.
    """
    aside, state = checkpoints / "writing", checkpoints / f"state_{progress.epoch:04d}_{progress.step:07d}"
    older = list(checkpoints.glob("state_*"))
    with writing(state, f"; make room and go on with --resume{' from the state before it' if older else ''}"):
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            content = {"progress": asdict(progress), "scheduler": scheduler.state_dict(), "terms": terms}
            (aside / PROGRESS).write_text(json.dumps(content, indent=1), encoding="utf-8")
            aside.rename(state)
            for folder in older:
                shutil.rmtree(folder)
        accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path, scheduler, terms: dict) -> Progress:
    """
    Go on from a state: weights, optimizer, random numbers and scheduler are put back in place.

    Raises:
        ResumeError: the state belongs to a run with other fields, data or processes.
    """
    content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    for name, value in content["terms"].items():
        if terms.get(name) != value:
            raise ResumeError(f"{folder}: {name} was {value!r} in this run and is {terms.get(name)!r} now: give the "
                              "same value to go on, or start another run in another output_dir")  # fmt: skip
    accelerator.load_state(str(folder))
    scheduler.load_state_dict(content["scheduler"])
    return Progress(**{**content["progress"], "norms": NormHistory(**content["progress"]["norms"])})
