"""
Fuzz for a given time: long texts, batches of texts by category, Hypothesis, Atheris on the processor and the decoder.

    make fuzz                      # ten minutes
    make fuzz SECONDS=3600 SEED=5  # an hour; the seed of a run repeats its texts

Failures are written to outputs/fuzz/finding-*.json, and the exit code is then 1. To get a text back:
`base64.b64decode(entry["base64"]).decode("utf-8", "surrogatepass")`.
"""

import argparse
import base64
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from tqdm import tqdm

from .guided import explore
from .jobs import BASE, run
from .plan import Finding, Job, Result, long_jobs
from .properties import ROOT
from .targets import TARGETS
from .texts import LONG, batch
from .worker import Worker


SHARES = {"long": 0.3, "batches": 0.4, "hypothesis": 0.1, "processor": 0.1, "choice": 0.05, "decoder": 0.05}
TEXTS = ("long", "batches", "hypothesis", "processor")  # the other parts have scores as inputs
REPORT_EVERY = 30  # seconds
MOST_FINDINGS = 20  # after so many, the run stops


class Part(Result):
    """The sum of the results of a part."""

    def add(self, result: Result):
        self.texts += result.texts
        self.entities += result.entities
        self.seconds += result.seconds
        self.peak = max(self.peak, result.peak)
        self.growth += result.growth
        self.findings += result.findings

    @property
    def inputs(self) -> int:
        return self.texts.total()

    def __str__(self) -> str:
        rate = self.inputs / max(self.seconds, 1e-3)
        return f"{self.inputs:>9,} inputs {rate:>7,.0f} a CPU second, peak {self.peak / 1e6:>6,.0f} MB"


class Run:
    """A run, with the results so far by part, and the files of findings."""

    def __init__(self, seed: int, seconds: float, output: Path):
        self.seed, self.seconds, self.output = seed, seconds, output
        self.parts = {name: Part() for name in SHARES}
        self.files: list[Path] = []

    def do(self):
        """Run each part for its share of the remaining time: the time that a part leaves goes to those after it."""
        end, names = time.monotonic() + self.seconds, list(SHARES)
        for place, name in enumerate(names):
            left = max(0.0, end - time.monotonic())
            seconds = left * SHARES[name] / sum(SHARES[other] for other in names[place:])
            if len(self.files) < MOST_FINDINGS:
                self.guided(name, seconds) if name in TARGETS else self.jobs(name, seconds)

    def jobs(self, name: str, seconds: float):
        """Run jobs of a part until its time is over, at least one, in a process for this part alone."""
        jobs: Iterable[Job] = long_jobs() if name == "long" else (Job(name, self.seed, k) for k in count())
        worker, first = Worker(run), 0
        for job in self.timed(name, jobs, seconds):
            result = worker.do(job)
            first = first or result.kept
            if name != "long" and result.kept > first + BASE:
                error = f"memory is not bounded: {first / 1e6:.0f} MB grew to {result.kept / 1e6:.0f} MB: {job}"
                result.findings.append(Finding(name, error, [text for _, text in job.texts()]))
                first = result.kept
            for line in result.growth:
                tqdm.write(line)
            self.add(name, result)
        worker.stop()

    def guided(self, name: str, seconds: float):
        """Run one of the targets under Atheris."""
        known = [b"\0" + text.encode("utf-8", "surrogatepass") for _, text in batch(self.seed, 0)]
        with tqdm(desc=name, unit=" inputs", mininterval=1) as bar:
            result = explore(name, self.seed, seconds, known, lambda number: bar.update(number - bar.n))
        self.add(name, result)
        print(f"{name}: {self.parts[name]}", flush=True)

    def timed(self, name: str, jobs: Iterable[Job], seconds: float) -> Iterator[Job]:
        """Yield jobs until the time is over, and report progress."""
        part, start, said = self.parts[name], time.monotonic(), 0.0
        with tqdm(
            total=round(seconds), desc=name, bar_format="{desc}: {n:.0f} of {total} s |{bar:20}| {postfix}"
        ) as bar:
            for job in jobs:
                yield job
                passed = time.monotonic() - start
                bar.n = min(round(passed), bar.total)
                bar.set_postfix_str(str(part))
                if passed > said + REPORT_EVERY:
                    said = passed
                    bar.write(f"{name}: {part}; " + ", ".join(f"{k} {n:,}" for k, n in sorted(part.texts.items())))
                if passed > seconds or len(self.files) >= MOST_FINDINGS:
                    return

    def add(self, name: str, result: Result):
        self.parts[name].add(result)
        for finding in result.findings:
            self.files.append(write(finding, self.output, len(self.files) + 1))
            tqdm.write(f"FOUND in {name} {finding.category}: {finding.error}\n    {self.files[-1]}")

    def summary(self) -> str:
        """Format the results as tables."""
        batches, long = self.parts["batches"], self.parts["long"]
        lines = ["", f"{'part':12} {'inputs':>10} {'CPU s':>8} {'a CPU s':>8} {'peak MB':>8} {'findings':>8}"]
        for name, part in self.parts.items():
            rate = part.inputs / max(part.seconds, 1e-3)
            numbers = f"{part.inputs:>10,} {part.seconds:>8,.0f} {rate:>8,.0f} {part.peak / 1e6:>8,.0f}"
            lines.append(f"{name:12} {numbers} {len(part.findings):>8}")
        lines += ["", *(f"{name:20} {number:>9,}" for name, number in sorted(batches.texts.items()))]
        texts = sum(self.parts[name].inputs for name in TEXTS)
        lines += ["", f"{texts:,} texts in all, {batches.entities:,} entities looked at; seed {self.seed}"]
        lines.append(
            f"{len(long.growth)} of {len(long_jobs())} pairs of a long text ({len(LONG)}) and a tokenizer or model"
        )
        return "\n".join([*lines, f"{len(self.files)} findings", *map(str, self.files)])


def write(finding: Finding, folder: Path, number: int) -> Path:
    """Write a finding to a file; texts are encoded as UTF-8 with surrogates."""
    inputs = []
    for each in finding.inputs:
        data = each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each
        inputs.append({"repr": repr(each)[:1000], "base64": base64.b64encode(data).decode()})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"finding-{number}.json"
    content = {"part": finding.part, "category": finding.category, "error": finding.error, "inputs": inputs}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Hostile texts for a given time.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "fuzz", help="folder of the findings")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} seconds", flush=True)
    run = Run(arguments.seed, arguments.seconds, arguments.output)
    run.do()
    print(run.summary())
    return 1 if run.files else 0


if __name__ == "__main__":
    sys.exit(main())
