"""
Measure SeNER and its peers and compare with the targets: `make bench`, less than an hour on two cores.

    make bench                    # everything; writes tests/benchmarks/results.json and results.png
    make bench ONLY=forward       # one group again: the others are kept from results.json
    make bench QUICK=1            # a quick trial: short texts, once each

`QUICK`, and the group `accelerator` of `make gpu`, write to outputs/benchmarks/ instead. Every run saves partial
results there, too. An accelerator is used if there is one. Peers are measured if their environments exist (`make
bench-gliner bench-gliner2`).
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from training.common.progress import progress_bar

from .longest import TRIALS, extrapolated, longest
from .machine import machine
from .points import ACCELERATOR, BOTH, GROUPS, PEERS, SQUARES, UPPER, Point, plan
from .report import longest_table, machine_line, plot, points_table, targets_table
from .targets import GB, TARGETS


HERE = Path(__file__).parent
TESTS, ROOT = HERE.parent, HERE.parents[1]
ENVIRONMENTS = {  # peer -> the folder of its environment, a target of the Makefile; the module that runs there
    "GLiNER": (".venv-gliner", "gliner_peer"),
    "GLiNER2": (".venv-gliner2", "gliner2_peer"),
    "GLiNER2.5": (".venv-gliner2", "gliner2_peer"),
}
OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "not enough memory", "MemoryError")
LONGEST_CAP = 2**20  # words; the upper limit of extrapolation
PEER_BATCHES = (1, 4, 8)


class Bench:
    """A run of the benchmarks, with the measurements so far."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.results: dict[Point, dict] = {}
        self.longest: list[dict] = []
        self.biases: dict[str, float] = {}
        self.partial = ROOT / "outputs" / "benchmarks"
        self.bar = progress_bar(unit="point", dynamic_ncols=True)

    def measure(self, point: Point) -> dict:
        """Measure a point in a process of its own. If it runs out of memory, the result is `{"error": ...}`."""
        if point in self.results:
            return self.results[point]
        self.bar.total = max(self.bar.total, self.bar.n + 1)  # some points are chosen during the run
        self.bar.set_description(str(point))
        result = run_child(point)
        self.bar.update()
        if point.what != "bias":
            self.results[point] = result
            said = result.get("error") or f"{result['seconds']:.2f} s, {result['added_bytes'] / GB:.2f} GB added"
            self.bar.write(f"{point}: {said}")
            self.write(self.partial)
        return result

    def restore(self, file: Path, group: str):
        """Load earlier measurements, except for the points of `group`, which are measured again."""
        content = json.loads(file.read_text(encoding="utf-8"))
        again = {replace(point, bias=0.0) for point in plan(group, self.quick)}
        names = {field.name for field in fields(Point)}
        for entry in content["points"]:
            point = Point(**{name: entry[name] for name in names})
            if replace(point, bias=0.0) not in again and point.what != group:
                self.results[point] = {name: entry[name] for name in entry if name not in names or name == "runs"}
        if group != "longest":
            self.longest = content["longest"]

    def run(self, groups: list[str]):
        self.bar.total = sum(len(plan(group, self.quick)) for group in groups)
        for group in groups:
            for point in plan(group, self.quick):
                self.measure(self.calibrated(point) if point.what == "entities" else point)
            if group == "peer":
                for peer in PEERS:
                    self.run_peer(peer)
            if group == "longest":
                self.run_longest()
        self.bar.close()

    def calibrated(self, point: Point) -> Point:
        """The point with its model's bias, with which few spans pass the threshold."""
        if point.model not in self.biases:
            length = 512 if self.quick else 1024
            self.biases[point.model] = self.measure(Point("bias", length, point.model))["bias"]
        return Point(**{**asdict(point), "bias": self.biases[point.model]})

    def run_peer(self, peer: str):
        if not python_of(peer).exists():
            self.bar.write(f"{peer} is not measured: `make bench-gliner bench-gliner2` makes its environment")
            return
        short, long = (384, 512) if self.quick else (4096, 16384)
        runs = 1 if self.quick else 3
        tried = [Point("peer", short, peer, runs=runs, batch_size=size) for size in PEER_BATCHES]
        fastest = min(tried, key=lambda point: self.measure(point).get("seconds", float("inf")))
        self.measure(Point("peer", long, peer, runs=1, batch_size=fastest.batch_size))

    def run_longest(self):
        limit = int((0.4 if self.quick else 8) * GB)
        # SeNER's memory is linear in the number of words.
        short, long = (128, 256) if self.quick else (4096, 8192)
        self.extrapolate(Point("training", 0, UPPER, runs=1), "trains", (short, long), limit)
        self.extrapolate(Point("training", 0, BOTH, runs=1), "trains", (short // 2, short), limit)
        for model, longer in ((UPPER, 2 * long), (BOTH, long)):
            point = Point("training", 0, model, checkpointing=True, runs=1)
            self.extrapolate(point, "trains, checkpointing", (short, longer), limit)
        reads = (512, 1024) if self.quick else (16384, 65536)
        reader = self.calibrated(Point("entities", 0, UPPER, runs=1))
        self.extrapolate(reader, "is read (text to entities)", reads, limit)
        for model in SQUARES:
            self.search(Point("training", 0, model, runs=1), "trains", limit)
            self.search(Point("forward", 0, model, runs=1), "is read (logits alone)", limit)

    def search(self, point: Point, mode: str, limit: int):
        words, trials = longest(lambda length: self.added(point, length), limit, start=128 if self.quick else 512)
        note = "not known to 5 %" if len(trials) == TRIALS else ""
        found = {"words": words, "limit_bytes": limit, "trials": trials, "note": note}
        self.longest.append({"model": point.model, "mode": mode, **found})
        self.write(self.partial)

    def added(self, point: Point, length: int) -> int | None:
        return self.measure(Point(**{**asdict(point), "length": length})).get("added_bytes")

    def extrapolate(self, point: Point, mode: str, lengths: tuple[int, int], limit: int):
        """Extrapolate from two lengths; the resulting length itself is not measured."""
        trials = [(length, self.added(point, length)) for length in lengths]
        if any(added is None for _, added in trials):
            words, note = 0, "not known: this machine's memory does not suffice to tell"
        else:
            words = extrapolated(*trials, limit, LONGEST_CAP)
            note = f"extrapolated from {lengths[0]:,} and {lengths[1]:,} words"
            if words == LONGEST_CAP:
                note += f", ended at {LONGEST_CAP:,}"
        found = {"words": words, "limit_bytes": limit, "trials": trials, "note": note}
        self.longest.append({"model": point.model, "mode": mode, **found})
        self.write(self.partial)

    def targets(self) -> list[dict]:
        return [target.row(self.results) for target in TARGETS]

    def write(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": machine(self.results),
            "targets": self.targets(),
            "longest": self.longest,
            "points": [{**asdict(point), **result} for point, result in self.results.items()],
        }
        (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def python_of(peer: str) -> Path:
    return ROOT / ENVIRONMENTS[peer][0] / "bin" / "python"


def run_child(point: Point) -> dict:
    """
    Measure a point in a process of its own.

    Raises:
        RuntimeError: the process failed for another reason than lack of memory.
    """
    python, module = sys.executable, "child"
    if point.what == "peer":
        python, module = python_of(point.model), ENVIRONMENTS[point.model][1]
    command = [str(python), "-m", f"benchmarks.{module}", json.dumps(asdict(point))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # nothing is loaded from the Hub
    if point.checkpointing:
        # Points with checkpointing measure memory: let glibc return freed tensors instead of keeping them.
        environment["MALLOC_MMAP_THRESHOLD_"] = "20000000"
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -9 or any(sign in done.stderr for sign in OUT_OF_MEMORY):
        return {"error": "out of memory"}
    raise RuntimeError(f"{point}: exit code {done.returncode}\n{done.stderr}")


def main():
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = (*GROUPS, ACCELERATOR)
    parser.add_argument("--only", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="short texts, once each")
    arguments = parser.parse_args()
    apart = arguments.quick or arguments.only == ACCELERATOR
    bench = Bench(arguments.quick)
    if arguments.only and not apart and (HERE / "results.json").exists():
        bench.restore(HERE / "results.json", arguments.only)
    try:
        bench.run([arguments.only] if arguments.only else list(GROUPS))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; what was measured is in {bench.partial}")
    folder = bench.partial if apart else HERE
    bench.write(folder)
    plot(bench.results, folder / "results.png")
    print(f"\n{points_table(bench.results)}\n")
    if bench.longest:
        print(f"{longest_table(bench.longest)}\n")
    print(f"{targets_table(bench.targets())}\n\n{machine_line(machine(bench.results))}")
    print(f"Written to {folder}")


if __name__ == "__main__":
    main()
