"""
Run one of `TARGETS` under Atheris, which mutates the inputs that reached new code.

libFuzzer takes over a process of its own: `python -m fuzz.guided TARGET [its options ...] FOLDER`.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .plan import Finding, Result


LONGEST = 512  # bytes of an input
HANGS = 60  # seconds after which an input counts as hung
MEGABYTES = 4096  # limit of the process; Python and the model take 450


def explore(target: str, seed: int, seconds: float, known: list[bytes], progress: Callable[[int], None]) -> Result:
    """
    Run Atheris in a process of its own, for `seconds`.

    Args:
        known: inputs to start from.
        progress: is called with the number of inputs so far.

    Returns:
        The number of inputs as `texts[target]`, CPU seconds, peak memory, and a finding if an input failed.
    """
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        found, first = Path(folder, "found"), Path(folder, "first")
        found.mkdir()
        first.mkdir()
        for number, data in enumerate(known):
            (first / str(number)).write_bytes(data[:LONGEST])
        options = [
            f"-seed={seed % 2**31 + 1}", f"-max_total_time={max(1, int(seconds))}", f"-max_len={LONGEST}",
            "-len_control=0", f"-timeout={HANGS}", f"-rss_limit_mb={MEGABYTES}",
            f"-artifact_prefix={found}/", "-print_final_stats=1",
        ]  # fmt: skip
        command = [sys.executable, "-m", "fuzz.guided", target, *options, str(first)]
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        result, lines = Result(), []
        for line in process.stdout:
            lines = [*lines[-60:], line]
            if number := re.match(r"(?:#|stat::number_of_executed_units: *)(\d+)", line):
                result.texts[target] = int(number[1])
                progress(int(number[1]))
            if size := re.match(r"stat::peak_rss_mb: *(\d+)", line):
                result.peak = int(size[1]) * 2**20
        if process.wait() != 0:
            inputs = [file.read_bytes() for file in sorted(found.iterdir())]
            # Out of memory or time, there is no such line: then `error` is the whole output.
            _, _, error = "".join(lines).rpartition("=== Uncaught Python exception: ===")
            result.findings.append(Finding(target, error[-2000:].partition("\n==")[0].strip(), inputs))
    result.seconds = cpu_seconds() - before
    return result


def cpu_seconds() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main():
    import atheris

    with atheris.instrument_imports(include=["modeling_sener", "fuzz.words", "support.references_decoding"]):
        from .targets import TARGETS
    import torch

    torch.set_num_threads(1)
    name, *options = sys.argv[1:]
    TARGETS[name](b"")  # build cached objects: their time must not count for the first input
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
