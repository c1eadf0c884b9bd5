"""
A long prediction that is killed and resumed at random: is its memory flat, its output complete, its bar right?

    cd tests && python -m tools.long_run                                    # 100,000 short documents, 500 long ones
    cd tests && python -m tools.long_run --short 2000 --long 5 --kills 3    # to see that it works

The documents are made up: short ones of about 50 words, long ones of a lognormal distribution whose median is 5,000,
among each other at random. The model is tiny and random. training/predict.py runs over them with `--resume`; SIGKILL
comes when a random number of documents is done, and a random part of a second later. Once a second the resident memory
of all its processes is noted. Prints a table of the stretches between the kills, and what follows from it.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
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


SHORT_WORDS, LONG_WORDS, SPREAD = (30, 70), 5000, 0.7  # of the lognormal: 5 % have more than 15,000 words
THRESHOLD = 0.97  # few spans of a random model have this score: lines of a usual length
WARM_UP = 0.2  # of a stretch: until the heap has the size that it keeps
BAR = re.compile(r"(\d+)/(\d+) \[")
LAG = 5 * CHUNK_TEXTS  # documents that the bar may be behind: it is drawn ten times a second at most
WAIT = 600  # seconds without a document after which the run is taken for dead


class Fault(Exception):
    """What must not be."""


@dataclass
class ChunkContext:
    """What is seen of a run from its start until it is killed or ends: samples of (documents done, bytes)."""

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
        """Bytes a document, by least squares after the warm-up, and the standard error of that."""
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
    """Resident bytes of a process and all below it."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def whole_lines(path: Path) -> int:
    """Of texts: the first line is the run's signature."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return max(sum(line.endswith(b"\n") for line in file) - 1, 0)


def run(command: list[str], partial: Path, first: int, kill_at: int | None, delay: float, bar: tqdm) -> ChunkContext:
    """Start the prediction; kill it `delay` seconds after its bar shows `kill_at`, or let it end."""
    chunk, began = ChunkContext(first), time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip

    def read_bar():
        buffer = ""
        while text := os.read(process.stderr.fileno(), 4096).decode(errors="replace"):
            buffer += text
            chunk.shown.extend(int(done) for done, total in BAR.findall(buffer) if int(total) == bar.total)
            buffer = buffer[buffer.rfind("\r") + 1 :]
            chunk.printed = (chunk.printed + text)[-4000:]

    reader, watched, news = Thread(target=read_bar), psutil.Process(process.pid), began
    reader.start()
    sampled = 0.0
    while process.poll() is None:
        done = chunk.shown[-1] if chunk.shown else first
        if done > bar.n:
            bar.update(done - bar.n)
            news = time.monotonic()
        if chunk.shown and time.monotonic() - sampled >= 1:
            sampled = time.monotonic()
            chunk.samples.append((done, memory_of(watched)))
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
    chunk.seconds = time.monotonic() - began
    is_over = partial.with_suffix("").exists() and not partial.exists()
    if code not in (0, -signal.SIGKILL) or (code == 0 and not is_over):
        raise Fault(f"exit code {code}: {chunk.printed[-1000:]}")
    chunk.last = bar.total if is_over else whole_lines(partial)
    if first and f"resumed after {first:,} texts" not in output:
        raise Fault(f"{first:,} documents were done, but it said: {output.strip()!r}")
    return chunk


def check_bar(chunk: ChunkContext, total: int) -> None:
    """It begins where the run does, never goes back, and is never further than the file, nor far behind it."""
    shown = chunk.shown or [chunk.first]  # none where the kill came as the model was loaded
    if shown[0] != chunk.first or shown != sorted(shown) or shown[-1] > chunk.last:
        raise Fault(f"the bar went from {shown[:1]} to {shown[-1:]}, the file from {chunk.first} to {chunk.last}")
    if chunk.last == total and shown[-1] != total:
        raise Fault(f"the bar ended at {shown[-1]:,} of {total:,}")
    if chunk.last - shown[-1] > LAG:
        raise Fault(f"the bar was at {shown[-1]:,} when {chunk.last:,} documents were done")


def check_output(corpus: Path, output: Path) -> int:
    """Every document once, in order, each entity where it says; the number of entities."""
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


def table(chunks: list[ChunkContext]) -> list[str]:
    head = ["from", "to", "seconds", "docs/s", "MB first", "MB last", "MB most"]
    rows = [head, *(chunk.row() for chunk in chunks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=100_000, help="documents of about 50 words")
    parser.add_argument("--long", type=int, default=500, help="documents of about 5,000 words")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "long_run", help="is emptied first")
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
    chunks: list[ChunkContext] = []
    with tqdm(total=total, unit="document") as bar:
        for kill_at in [*kills, None]:
            done = chunks[-1].last if chunks else 0
            chunk = run(command, partial, done, kill_at, generator.random(), bar)
            check_bar(chunk, total)
            chunks.append(chunk)
            if chunk.last == total and output.exists():
                break
    entities = check_output(corpus, output)
    print("\n".join(table(chunks)))
    longest = max(chunks, key=lambda chunk: chunk.last - chunk.first)
    slope, error = longest.slope()
    seconds = sum(chunk.seconds for chunk in chunks)
    print(
        f"{total:,} documents, each once and in order, {entities:,} entities; killed {len(chunks) - 1} times; "
        f"{total / seconds:.1f} documents a second\nmemory from document {longest.first:,} to {longest.last:,}: "
        f"{slope:+,.0f} bytes a document (standard error {error:,.0f}), {slope * total / 2**20:+,.1f} MB for all"
    )


if __name__ == "__main__":
    try:
        main()
    except Fault as fault:
        sys.exit(f"error: {fault}")
