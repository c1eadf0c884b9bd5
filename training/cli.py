"""What the commands share: all cores, memory that is kept, one message instead of a traceback where input is wrong."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable

import torch
from accelerate.utils import broadcast_object_list


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)


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


def on_main_process(accelerator, function: Callable[[], object]):
    """
    What `function` returns on the main process, on every process. Where it fails, every process ends, and the main
    one alone says why.
    """
    error, outcome = None, [True, None]
    if accelerator.is_main_process:
        try:
            outcome[1] = function()
        except (ValueError, OSError) as failure:
            error, outcome = failure, [False, None]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if error is not None:
        raise error
    if not outcome[0]:
        sys.exit(1)
    return outcome[1]


def use_all_cores(device: torch.device) -> None:
    """
    On the CPU, share out the cores over this machine's processes.

    `accelerate launch` and `torchrun` give a process one thread (`OMP_NUM_THREADS=1`) unless that variable is set to
    something else; training then takes as many times longer as there are cores. A process that was started otherwise
    is left alone.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_freed_memory(device: torch.device) -> None:
    """
    On the CPU, keep the memory of freed tensors for the next ones instead of giving it back to the system.

    Training frees and takes large tensors all the time, and each page that is new costs a fault and is filled with
    zeros. Only glibc has these settings.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
