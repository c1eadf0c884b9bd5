"""
Check that weights match the config and that weights and results are finite; find out where a result became infinite.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; one pass over it, no copy."""
    return tensor.numel() == 0 or bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def damaged_weights(model: nn.Module) -> list[str]:
    """Names of the weights (and buffers) that hold NaN or infinity; weights that are not in memory are left out."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, weight in named
            if weight.is_floating_point() and not weight.is_meta and not is_finite(weight)]  # fmt: skip


def describe(names: list[str]) -> str:
    """The first of several names, and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def check_weights(model: nn.Module, info: dict, name: str):
    """
    Raise `ValueError` if weights are missing, left over, not finite, or of other sizes than the config says.

    Args:
        info: the loading info of `from_pretrained`; a key that is missing there counts as no fault.
        name: the folder or repository.
    """
    cure = "config.json and model.safetensors do not belong together, or one of them was changed"
    if wrong := sorted(info.get("mismatched_keys", ())):
        _, found, expected = wrong[0]
        raise ValueError(
            f"{name}: {describe([key for key, *_ in wrong])} has the shape {tuple(found)}, by config.json it is "
            f"{tuple(expected)}: {cure}"
        )
    if missing := sorted(info.get("missing_keys", ())):
        raise ValueError(f"{name}: weights are missing: {describe(missing)}: {cure}")
    if unexpected := sorted(info.get("unexpected_keys", ())):
        raise ValueError(f"{name}: config.json has no place for the weights {describe(unexpected)}: {cure}")
    if damaged := damaged_weights(model):
        raise ValueError(
            f"{name}: the weights {describe(damaged)} hold NaN or infinity: the file is damaged, or its training "
            "diverged; use an earlier checkpoint"
        )


def check_one_device(model: nn.Module):
    """
    Raise `ValueError` if Accelerate moves modules between devices as they are called (`device_map`, `cpu_offload`,
    `disk_offload`): tensors that a text's chunks share would lie on the wrong device.
    """
    if any(hasattr(module, "_hf_hook") for module in model.modules() if module is not model):
        raise ValueError(
            "the weights lie on several devices, or are kept on another one than they compute on: load the model "
            'without device_map, or with one device (device_map={"": "cuda:0"})'
        )


def explain(model: nn.Module, compute: Callable[[], object]) -> str:
    """
    Find out why a model's result is not finite.

    Args:
        compute: repeats the pass that gave the result; called once, without gradients.

    Returns:
        A sentence that names the weights that are not finite, or else the first module whose output, or input, is not.
    """
    if not all(type(weight) is nn.Parameter and weight.numel() for weight in model.parameters()):
        # A pass of one process alone would wait for the others.
        return "the weights are shared out over processes: run in one process to see which of them is the cause"
    if names := damaged_weights(model):
        return f"the weights {describe(names)} hold NaN or infinity: load an undamaged or earlier checkpoint"
    found = first_overflow(model, compute)
    if found is None:
        return "the weights are finite, and so is every module's output when it is computed again"
    place, dtype = found
    cure = "use float32 or bfloat16" if dtype == torch.float16 else "they are too large"
    return f"the weights are finite, but {place} overflows {str(dtype).removeprefix('torch.')}: {cure}"


def first_overflow(model: nn.Module, compute: Callable[[], object]) -> tuple[str, torch.dtype] | None:
    """The first input or output of a module that is not finite, and its dtype; `None` if all are finite."""
    found = []

    def watch(name: str):
        def look(module: nn.Module, given, made) -> None:
            for place, tensors in (("what goes into", given), ("the output of", made)):
                for tensor in _floating(tensors):
                    if not found and not is_finite(tensor):
                        found.append((f"{place} {name}", tensor.dtype))

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            compute()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _floating(value) -> Iterator[Tensor]:
    """Yield the floating-point tensors of a module's inputs or outputs."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _floating(list(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _floating(each)
