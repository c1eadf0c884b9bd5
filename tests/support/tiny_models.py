"""Tiny encoders and SeNER models for the tests, and transformers' own encoders with dense arrow attention."""

import torch
from support import references
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from modeling_sener import SenerConfig, SenerModel


VOCABULARY = 60
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 64, "hidden_act": "gelu"}
DEBERTA = {
    **BERT,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
BACKBONES = {
    "deberta-v3": {"model_type": "deberta-v2", **DEBERTA},
    "deberta-own-keys": {"model_type": "deberta-v2", **DEBERTA, "share_att_key": False},
    "deberta-c2p": {"model_type": "deberta-v2", **DEBERTA, "pos_att_type": ["c2p"]},
    "deberta-p2c": {"model_type": "deberta-v2", **DEBERTA, "share_att_key": False, "pos_att_type": ["p2c"]},
    "deberta-no-terms": {"model_type": "deberta-v2", **DEBERTA, "pos_att_type": []},
    "deberta-unnormed": {"model_type": "deberta-v2", **DEBERTA, "norm_rel_ebd": "none"},
    "deberta-no-buckets": {
        "model_type": "deberta-v2", **DEBERTA, "position_buckets": -1, "max_relative_positions": 40
    },
    "deberta-absolute": {
        "model_type": "deberta-v2", **DEBERTA, "position_biased_input": True, "max_position_embeddings": 64,
        "type_vocab_size": 2,
    },
    "deberta-projected": {"model_type": "deberta-v2", **DEBERTA, "embedding_size": 10},
    "deberta-convolution": {"model_type": "deberta-v2", **DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    "bert": {"model_type": "bert", **BERT},
    "roberta": {"model_type": "roberta", **BERT, "max_position_embeddings": 66, "pad_token_id": 1},
    "xlm-roberta": {"model_type": "xlm-roberta", **BERT, "max_position_embeddings": 66, "pad_token_id": 1},
    "electra": {"model_type": "electra", **BERT, "embedding_size": 10},
    "distilbert": {
        "model_type": "distilbert", "vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2,
        "hidden_dim": 24, "max_position_embeddings": 64,
    },
    "modernbert": {
        "model_type": "modernbert", **SIZES, "num_hidden_layers": 4, "intermediate_size": 24, "local_attention": 6,
        "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2,
        "sep_token_id": 3,
    },
}  # fmt: skip
DEBERTAS = [name for name in BACKBONES if name.startswith("deberta")]
OTHERS = [name for name in BACKBONES if not name.startswith("deberta")]
HEAD = {"attention_window": 8, "span_window": 4, "biaffine_size": 6, "span_channels": 8, "span_layers": 2}
LABELS = ["Method", "Task", "Material"]


def tiny_config(backbone="bert", **fields):
    """`backbone` is a name of `BACKBONES`, or a dict of the encoder's own fields."""
    backbone = BACKBONES[backbone] if isinstance(backbone, str) else backbone
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    return SenerConfig(backbone_config=dict(backbone), **{**names, **HEAD, **fields})


def randomize(module, seed=0):
    """Draw weights so large that a wrong term shows: matrices with gain 1.2, norms and biases away from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.2 / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_((parameter.double().mean() > 0.5) + 0.2 * noise)
    return module


def tiny_model(backbone="bert", seed=0, **fields):
    """A SenerModel with random weights in eval mode."""
    return randomize(SenerModel(tiny_config(backbone, **fields)), seed).eval()


def batch(lengths, seed=0, tokens_per_word=2, pad_token_id=0, device="cpu"):
    """
    Draw input_ids, attention_mask and word_index of texts with `lengths` tokens: [CLS], words, [SEP], padding. Words
    have one or more tokens, `tokens_per_word` on average.
    """
    generator = torch.Generator().manual_seed(seed)
    T = max(lengths)
    input_ids = torch.full((len(lengths), T), pad_token_id)
    attention_mask, word_index = torch.zeros(2, len(lengths), T, dtype=torch.long)
    for b, length in enumerate(lengths):
        input_ids[b, :length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
        attention_mask[b, :length] = 1
        starts = torch.randint(0, tokens_per_word, (max(length - 2, 0),), generator=generator) == 0
        if length > 2:
            starts[0] = True
        word_index[b, 1 : length - 1] = starts.long().cumsum(0)
    return on(device, {"input_ids": input_ids, "attention_mask": attention_mask, "word_index": word_index})


def alone(inputs, b):
    """Text b of a batch, without its padding."""
    length = int(inputs["attention_mask"][b].sum())
    return {name: tensor[b : b + 1, :length] for name, tensor in inputs.items()}


def on(device, inputs):
    """Move the inputs of a model to a device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def assert_close(ours, expected, **tolerance):
    """`torch.testing.assert_close`, of results on any device with `expected` from the CPU."""
    torch.testing.assert_close(ours, expected, check_device=False, **tolerance)


DENSE = {"kind": "arrow", "window": None, "log_n": False}


def _dense_mask(batch_size, q_length, kv_length, attention_mask=None, **kwargs):
    return torch.ones(batch_size, kv_length, dtype=torch.bool) if attention_mask is None else attention_mask


def _dense_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None:
        attention_mask = torch.ones(query.shape[0], query.shape[2], dtype=torch.bool)
    is_local = sliding_window is not None and (DENSE["kind"] == "full" or sliding_window - 1 < DENSE["window"])
    how = {"kind": "sliding_window", "window": sliding_window - 1} if is_local else DENSE
    return references.generic_attention(query, key, value, attention_mask, scaling, **how).transpose(1, 2), None


AttentionInterface.register("dense_reference", _dense_attention)
AttentionMaskInterface.register("dense_reference", _dense_mask)
assert "dense_reference" in ALL_MASK_ATTENTION_FUNCTIONS


def wrapped_positions(config, T):
    """(1, T) positions that start again where the learned table ends; None if the encoder has no table."""
    if config.model_type in ("modernbert", "deberta-v2"):
        return None
    first = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return first + torch.arange(T)[None] % (config.max_position_embeddings - first)


def own_encoder(model, implementation="eager"):
    """transformers' own encoder with the weights of `model.backbone`."""
    config = AutoConfig.for_model(**{**model.config.backbone_config.to_dict(), "dtype": None})
    encoder = AutoModel.from_config(config, attn_implementation=implementation)
    encoder.to(next(model.parameters()).dtype)
    missing = encoder.load_state_dict(model.backbone.state_dict(), strict=False)
    assert not [name for name in missing.missing_keys if "pooler" not in name], missing
    assert not missing.unexpected_keys, missing
    return encoder.eval()


def dense_states(model, input_ids, attention_mask, kind="arrow", window=None, log_n=False):
    """
    States of `model`'s encoder with dense attention: of `references.deberta_encoder` for DeBERTa, else of
    transformers' own encoder with a dense mask.
    """
    config = model.config.backbone_config
    if config.model_type == "deberta-v2":
        state = dict(model.backbone.named_parameters())
        return references.deberta_encoder(state, config, input_ids, attention_mask, kind, window, log_n)
    DENSE.update(kind=kind, window=window, log_n=log_n)
    positions = wrapped_positions(config, input_ids.shape[1])
    arguments = {} if positions is None else {"position_ids": positions.expand_as(input_ids)}
    # Called with the model's own parameters, so that gradients reach them.
    parameters = dict(model.backbone.named_parameters())
    arguments = {"input_ids": input_ids, "attention_mask": attention_mask, **arguments}
    encoder = own_encoder(model, "dense_reference")
    return torch.func.functional_call(encoder, parameters, kwargs=arguments).last_hidden_state
