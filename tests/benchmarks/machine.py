"""What the figures were measured on."""

import os
import platform
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from .points import Point


PROCESSOR = Path("/proc/cpuinfo")
# Those that decide how fast matrix products are, of x86 and of ARM, as Linux names them.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def machine(results: dict[Point, dict]) -> dict:
    done = [result for result in results.values() if "seconds" in result]
    names = {result.get("device", "cpu") for result in done} - {"cpu"}
    rates = [
        result["product_flops_per_second"]
        for point, result in results.items()
        if point.precision == "float32" and "seconds" in result
    ]
    versions = {point.model: result["version"] for point, result in results.items() if "version" in result}
    return {
        "processor": processor(),
        "instruction_sets": instruction_sets(),
        "cores": os.cpu_count(),
        "threads": max((result["threads"] for result in done), default=None),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": min(names, default=None),
        "product_flops_per_second": [min(rates), max(rates)] if rates else None,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "gliner": versions.get("GLiNER"),
        "gliner2": versions.get("GLiNER2", versions.get("GLiNER2.5")),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    return next(cpuinfo("model name"), platform.processor() or platform.machine())


def instruction_sets() -> list[str]:
    """What torch's own kernels use, and the processor's flags that its libraries may use beyond it."""
    words = next(cpuinfo("flags", "Features"), "").split()
    return [f"torch {torch.backends.cpu.get_cpu_capability()}", *(flag for flag in FLAGS if flag in words)]


def cpuinfo(*names: str) -> Iterator[str]:
    """The values of a field, of each core in turn; none where the system does not tell."""
    for line in PROCESSOR.read_text().splitlines() if PROCESSOR.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in names:
            yield value.strip()
