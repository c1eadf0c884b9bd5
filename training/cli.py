"""What the commands share: all cores, and one message instead of a traceback where the input is at fault."""

import os
import sys
from collections.abc import Callable

import torch


def run(main: Callable[[], None]) -> None:
    """
    Call `main`. A `ValueError` (data, fields, config, checkpoint: all of them name what is wrong), an `OSError` (a
    file that cannot be read or written) or a `FloatingPointError` (scores that are not finite) becomes one line on
    standard error and exit code 1.
    """
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def use_all_cores(device: torch.device) -> None:
    """
    On the CPU, share out the cores over this machine's processes.

    `accelerate launch` gives a process one thread (`OMP_NUM_THREADS=1`) unless that variable is set to something else;
    training then takes as many times longer as there are cores. A process that was started otherwise is left alone.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
