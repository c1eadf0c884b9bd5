"""Make texts of any length with one token per word, and encoders, for SeNER and its peers. Needs only transformers."""

import random

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
LABELS = [f"label{number}" for number in range(12)]
WORDS = [f"word{number}" for number in range(1000)]
VOCABULARY = [*SPECIAL.values(), *LABELS, *WORDS]
WORDS_PER_SPAN = 16  # one span per so many words passes the threshold; in training, one is gold

# 6 layers each. Dropout of attention weights is off, as in training/train.py.
BACKBONES = {
    "DeBERTa": {  # v3's settings, 768 wide
        "model_type": "deberta-v2",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "attention_probs_dropout_prob": 0.0,
    },
    "MiniLM": {  # a BERT, 384 wide
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "attention_probs_dropout_prob": 0.0,
    },
}


def make_words(length: int) -> list[str]:
    return random.Random(0).choices(WORDS, k=length)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
