"""Low-rank adapters on the encoder's query and value projections, by peft, and their merging into plain weights."""

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
    Freeze `model.backbone` and put adapters on its query and value projections, those layers' biases being trained
    with them. Everything outside the backbone, the head, stays plain and trainable.

    The adapters are injected in place: the encoder stays what the model expects, and no wrapper has to know
    which parameters of the head to save.
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
    The weights of `model` as it would be without adapters: W + alpha / r * B A under the layer's own name.

    The model itself is not changed, so that training goes on exactly as if nothing had been saved. Weights that are
    sharded over processes come whole, on every process: all of them have to call this.
    """
    whole = {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
             for name, tensor in model.state_dict().items()}  # fmt: skip
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in whole.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                low, high = (whole[f"{name}.lora_{side}.{adapter}.weight"] for side in "AB")
                state[f"{name}.weight"] = state[f"{name}.weight"] + module.scaling[adapter] * (high @ low)
    return state
