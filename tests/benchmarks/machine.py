"""Describe the machine of the measurements."""

import os
import platform
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from .points import Point


PROCESSOR = Path("/proc/cpuinfo")
# Instruction sets of x86 and ARM that determine the speed of matrix products, by their names in Linux.
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
    """The instruction set of torch's own kernels, and flags of the processor that its libraries may use."""
    words = next(cpuinfo("flags", "Features"), "").split()
    return [f"torch {torch.backends.cpu.get_cpu_capability()}", *(flag for flag in FLAGS if flag in words)]


def cpuinfo(*names: str) -> Iterator[str]:
    """Yield the values of a field of /proc/cpuinfo, core by core; none if the system has no such file."""
    for line in PROCESSOR.read_text().splitlines() if PROCESSOR.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in names:
            yield value.strip()
