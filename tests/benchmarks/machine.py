"""What the figures were measured on."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

from .points import Point


def machine(results: dict[Point, dict]) -> dict:
    done = [result for result in results.values() if "seconds" in result]
    names = {result.get("device", "cpu") for result in done} - {"cpu"}
    rates = [
        result["product_flops_per_second"]
        for point, result in results.items()
        if point.precision == "float32" and "seconds" in result
    ]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": max((result["threads"] for result in done), default=None),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": min(names, default=None),
        "product_flops_per_second": [min(rates), max(rates)] if rates else None,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "gliner": next((result["version"] for result in done if "version" in result), None),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
