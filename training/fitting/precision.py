"""Choose the precision of a run's computation by the device's native support."""

import torch
from accelerate.utils import parse_flag_from_env


# Names of `torch.cpu.get_capabilities`: x86, then ARM. AVX512 without the first computes bfloat16 in float32.
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def training_device() -> torch.device:
    """The kind of device that `Accelerator` will choose."""
    if torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


def has_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether `device` computes bfloat16 natively, and the reason for this answer."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        found = [name for name in CPU_INSTRUCTIONS if capabilities.get(name)]
        if not found:
            kind = torch.backends.cpu.get_cpu_capability()
            return False, f"this processor ({kind}) has no instructions for bfloat16 and emulates it"
        if not torch.backends.mkldnn.is_available():
            return False, "this torch was built without oneDNN and emulates bfloat16"
        return True, f"this processor has {', '.join(found)}"
    if device.type in ("cuda", "xpu"):
        native = torch.get_device_module(device).is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        native = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        return False, f"it is not known whether {device.type} computes bfloat16"
    return native, f"this {device.type} device {'computes' if native else 'emulates or lacks'} bfloat16"


def choose_precision(asked: str, device: torch.device) -> tuple[str, str | None]:
    """
    Choose the precision of computation: the one asked for; for "auto" bf16 if the device has it, else fp16 on an
    accelerator and float32 on the CPU.

    Args:
        asked: the field `mixed_precision`.

    Returns:
        "no", "bf16" or "fp16"; and a line: the choice of "auto" with its reason, or a warning of emulated bf16; else
        `None`.
    """
    if asked not in ("auto", "bf16"):
        return asked, None
    native, reason = has_bf16(device)
    if asked == "auto":
        taken = "bf16" if native else "no" if device.type == "cpu" else "fp16"
        return taken, f"mixed_precision: auto takes {taken}: {reason}"
    warning = f"warning: mixed_precision is bf16: {reason}, which can take ten times as long; auto or no avoids it"
    return asked, None if native else warning
