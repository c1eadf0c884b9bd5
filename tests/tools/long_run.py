"""
Kill and resume a long prediction at random; check that memory is flat, the output complete and the bar right.

    cd tests && python -m tools.long_run                                    # 100,000 short documents, 500 long ones
    cd tests && python -m tools.long_run --short 2000 --long 5 --kills 3    # a quick trial

The documents are made up: short ones of about 50 words, long ones of a lognormal distribution whose median is 5,000,
among each other at random. The model is tiny and random. training/predict.py runs over them with `--resume`, in a
terminal of its own, where its bar shows each chunk; SIGKILL follows when a random number of documents is done, after a
random fraction of a second. The resident memory of all its processes is sampled once a second. Prints a table with a
row for each attempt (from a start to a kill), and a summary.
"""

import argparse
import fcntl
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
from support.predictions import toy_checkpoint
from support.tiny import CORPUS
from support.toy import ROOT
from tqdm import tqdm

from training.inference.job import CHUNK_TEXTS


SHORT_WORDS, LONG_WORDS, SPREAD = (30, 70), 5000, 0.7  # sigma of the lognormal; 5 % have more than 15,000 words
THRESHOLD = 0.97  # few spans of a random model pass: lines have a usual length
WARM_UP = 0.2  # share of an attempt, until the heap has its final size
# The bars of reading and writing files begin with words.
BAR = re.compile(r"\r *\d+%\|[^|]*\| (\d+)/(\d+) \[")
LAG = 5 * CHUNK_TEXTS  # the most documents that the bar may lag: it is drawn at most ten times a second
WAIT = 600  # seconds without a document after which the run counts as hung


class Fault(Exception):
    """A check failed."""


@dataclass
class Attempt:
    """Observations of a run from its start to its kill or end; `samples` are (documents done, bytes)."""

    first: int
    seconds: float = 0.0
    shown: list[int] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)
    printed: str = ""
    last: int = 0  # documents whose lines are in the file

    def row(self) -> list[str]:
        memory = [size / 2**20 for _, size in self.samples] or [0.0]
        speed = (self.last - self.first) / self.seconds
        return [f"{self.first:,}", f"{self.last:,}", f"{self.seconds:.0f}", f"{speed:.1f}",
                *(f"{value:.0f}" for value in (memory[0], memory[-1], max(memory)))]  # fmt: skip

    def slope(self) -> tuple[float, float]:
        """The growth in bytes per document, by least squares after the warm-up, and its standard error."""
        samples = np.array(self.samples[int(WARM_UP * len(self.samples)) :], dtype=float).reshape(-1, 2)
        if len(samples) < 3 or np.ptp(samples[:, 0]) == 0:
            return float("nan"), float("nan")
        x, y = samples[:, 0] - samples[:, 0].mean(), samples[:, 1] - samples[:, 1].mean()
        slope = (x @ y) / (x @ x)
        return slope, float(np.sqrt(((y - slope * x) ** 2).sum() / (len(x) - 2) / (x @ x)))


def make_corpus(path: Path, short: int, long: int, seed: int) -> None:
    generator, vocabulary = random.Random(seed), " ".join(CORPUS).split()
    kinds = [True] * long + [False] * short
    generator.shuffle(kinds)
    with path.open("w", encoding="utf-8") as file:
        for number, is_long in enumerate(tqdm(kinds, desc="making documents", leave=False)):
            words = int(generator.lognormvariate(np.log(LONG_WORDS), SPREAD)) if is_long \
                else generator.randint(*SHORT_WORDS)  # fmt: skip
            text = " ".join(generator.choices(vocabulary, k=max(words, 1)))
            file.write(json.dumps({"id": number, "text": text}) + "\n")


def memory_of(process: psutil.Process) -> int:
    """Resident bytes of a process and its descendants."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def whole_lines(path: Path) -> int:
    """The number of complete lines of texts; the first line is the run's signature."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return max(sum(line.endswith(b"\n") for line in file) - 1, 0)


def read_screen(screen: int) -> str:
    """Read what was printed on a terminal; "" when no process has it open any more."""
    try:
        return os.read(screen, 4096).decode(errors="replace")
    except OSError:  # EIO, which is Linux's end of such a file
        return ""


def run(command: list[str], partial: Path, first: int, kill_at: int | None, delay: float, bar: tqdm) -> Attempt:
    """Start the prediction; kill it `delay` seconds after its bar shows `kill_at`, or let it end."""
    attempt, began = Attempt(first), time.monotonic()
    screen, terminal = os.openpty()
    fcntl.ioctl(
        terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0)
    )  # rows, columns: without, no bar is drawn
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True,
                               start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    os.close(terminal)

    def read_bar():
        buffer = ""
        while text := read_screen(screen):
            buffer += text
            attempt.shown.extend(int(done) for done, total in BAR.findall(buffer) if int(total) == bar.total)
            buffer = buffer[max(buffer.rfind("\r"), 0) :]
            attempt.printed = (attempt.printed + text)[-4000:]
        os.close(screen)

    reader, watched, news = Thread(target=read_bar), psutil.Process(process.pid), began
    reader.start()
    sampled = 0.0
    while process.poll() is None:
        done = attempt.shown[-1] if attempt.shown else first
        if done > bar.n:
            bar.update(done - bar.n)
            news = time.monotonic()
        if attempt.shown and time.monotonic() - sampled >= 1:
            sampled = time.monotonic()
            attempt.samples.append((done, memory_of(watched)))
        if kill_at is not None and done >= kill_at:
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGKILL)
            break
        if time.monotonic() - news > WAIT:
            os.killpg(process.pid, signal.SIGKILL)
            raise Fault(f"no document for {WAIT} s")
        time.sleep(0.02)
    output = process.stdout.read()
    code = process.wait()
    reader.join()
    attempt.seconds = time.monotonic() - began
    is_over = partial.with_suffix("").exists() and not partial.exists()
    if code not in (0, -signal.SIGKILL) or (code == 0 and not is_over):
        raise Fault(f"exit code {code}: {attempt.printed[-1000:]}")
    attempt.last = bar.total if is_over else whole_lines(partial)
    if first and attempt.shown and f"resumed after {first:,} texts" not in output:
        raise Fault(f"{first:,} documents were done, but it said: {output.strip()!r}")
    return attempt


def check_bar(attempt: Attempt, total: int) -> None:
    """Check that the bar starts with the run, never goes back, is never ahead of the file, nor far behind it."""
    shown = attempt.shown or [attempt.first]  # empty if the kill came before the bar
    if shown[0] != attempt.first or shown != sorted(shown) or shown[-1] > attempt.last:
        raise Fault(f"the bar went from {shown[:1]} to {shown[-1:]}, the file from {attempt.first} to {attempt.last}")
    if attempt.last == total and shown[-1] != total:
        raise Fault(f"the bar ended at {shown[-1]:,} of {total:,}")
    if attempt.last - shown[-1] > LAG:
        raise Fault(f"the bar was at {shown[-1]:,} when {attempt.last:,} documents were done")


def check_output(corpus: Path, output: Path) -> int:
    """Check that each document occurs once, in order, with right offsets; returns the number of entities."""
    entities = 0
    with corpus.open(encoding="utf-8") as given, output.open(encoding="utf-8") as found:
        for number, line in enumerate(tqdm(given, desc="checking the output", leave=False)):
            record = json.loads(found.readline() or "null")
            if record is None or record["id"] != str(number):
                raise Fault(f"document {number}: the output has {record and record['id']} in its place")
            text = json.loads(line)["text"]
            for entity in record["entities"]:
                if text[entity["start"] : entity["end"]] != entity["text"]:
                    raise Fault(f"document {number}: {entity} is not in the text")
            entities += len(record["entities"])
        if found.readline():
            raise Fault("the output has more lines than there are documents")
    return entities


def table(attempts: list[Attempt]) -> list[str]:
    head = ["from", "to", "seconds", "docs/s", "MB first", "MB last", "MB most"]
    rows = [head, *(attempt.row() for attempt in attempts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=100_000, help="documents of about 50 words")
    parser.add_argument("--long", type=int, default=500, help="documents of about 5,000 words")
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "long_run", help="emptied first")
    options = parser.parse_args()
    folder, total = options.folder.absolute(), options.short + options.long
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    toy_checkpoint(folder)
    corpus, output = folder / "corpus.jsonl", folder / "out.jsonl"
    make_corpus(corpus, options.short, options.long, options.seed)
    command = [sys.executable, "training/predict.py", "--model", str(folder / "model"), "--input", str(corpus),
               "--output", str(output), "--threshold", str(THRESHOLD), "--resume"]  # fmt: skip
    generator, partial = random.Random(options.seed), Path(f"{output}.partial")
    kills = sorted(generator.randrange(total) for _ in range(options.kills))
    print(f"{total:,} documents, {corpus.stat().st_size / 2**20:,.0f} MB; killed after about "
          f"{', '.join(f'{kill:,}' for kill in kills)}", flush=True)  # fmt: skip
    attempts: list[Attempt] = []
    with tqdm(total=total, unit="document") as bar:
        for kill_at in [*kills, None]:
            done = attempts[-1].last if attempts else 0
            attempt = run(command, partial, done, kill_at, generator.random(), bar)
            check_bar(attempt, total)
            attempts.append(attempt)
            if attempt.last == total and output.exists():
                break
    entities = check_output(corpus, output)
    print("\n".join(table(attempts)))
    longest = max(attempts, key=lambda attempt: attempt.last - attempt.first)
    slope, error = longest.slope()
    seconds = sum(attempt.seconds for attempt in attempts)
    print(
        f"{total:,} documents, each once and in order, {entities:,} entities; killed {len(attempts) - 1} times; "
        f"{total / seconds:.1f} documents a second\nmemory from document {longest.first:,} to {longest.last:,}: "
        f"{slope:+,.0f} bytes a document (standard error {error:,.0f}), {slope * total / 2**20:+,.1f} MB for all"
    )


if __name__ == "__main__":
    try:
        main()
    except Fault as fault:
        sys.exit(f"error: {fault}")
