"""Put low-rank adapters (LoRA) on the encoder's query and value projections with peft, and merge them into weights."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.tensor import DTensor


# The query and value projections by encoder family. ModernBERT has query, key and value in one matrix, which is
# adapted as a whole.
TARGETS = {
    "deberta-v2": ["query_proj", "value_proj"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
    "electra": ["query", "value"],
    "camembert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
}


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """
    Freeze `model.backbone` and put adapters on its query and value projections. The biases of these layers are trained
    with them. The head (everything outside the backbone) stays plain and trainable.

    The adapters are injected in place: the encoder keeps its class, and no wrapper has to know which parameters of the
    head to save.

    Raises:
        ValueError: no LoRA targets are known for the encoder's family.
    """
    family = model.backbone.config.model_type
    if family not in TARGETS:
        raise ValueError(f"lora_rank is {rank}: no LoRA targets are known for {family!r} (known: "
                         f"{', '.join(sorted(TARGETS))}); train the whole encoder with lora_rank 0")  # fmt: skip
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS[family], bias="lora_only")
    inject_adapter_in_model(config, model.backbone)


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    Merge the adapters of `model` into its weights: W + alpha / r * B A, under the layer's own name.

    The model itself is not changed, so that training goes on exactly as if nothing had been saved. Weights that are
    sharded over processes are gathered on every process: all processes have to call this.
    """
    state = {name.replace(".base_layer.", "."): gathered(tensor)
             for name, tensor in model.state_dict().items() if ".lora_" not in name}  # fmt: skip
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                delta = gathered(module.get_delta_weight(adapter))
                state[f"{name}.weight"] = state[f"{name}.weight"] + delta
    return state


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, on every process, if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
