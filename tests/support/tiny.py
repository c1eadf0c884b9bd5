"""
Small tokenizers of the kinds that encoders have, read from data/tokenizers. `cd tests && python -m support.tiny`
trains them anew. Tests do not: training breaks ties at random, and tests need the same token ids each time.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


FOLDER = Path(__file__).parents[1] / "data" / "tokenizers"
CORPUS = (
    "We train ResNet-50 on ImageNet and report 93.5 % top-1 accuracy .",
    "Arrow attention scores the span tensor of long texts .",
    "Our method improves low-rank adaptation of language models by 0.5 F1 .",
    "The quick brown fox jumps over the lazy dog ; 1,000 words , 23 entities .",
    "Ada Lovelace worked with Charles Babbage in London on the Analytical Engine .",
)
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """
    A tokenizer of 200 to 350 tokens, a new object each time.

    Args:
        kind: "wordpiece" (like BERT's, lower case, unknown characters are [UNK]), "bytelevel" (like RoBERTa's, without
            the prefix space) or "unigram" (like DeBERTa-v3's, NFKC, unknown characters are [UNK]).
    """
    tokens = ROBERTA_TOKENS if kind == "bytelevel" else BERT_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(FOLDER / f"{kind}.json")), **tokens)


def train(kind: str) -> Tokenizer:
    tokenizer, trainer = MAKERS[kind]()
    tokenizer.train_from_iterator(CORPUS, trainer)
    first, last = ("<s>", "</s>") if kind == "bytelevel" else ("[CLS]", "[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return tokenizer


def sentencepiece_folder(folder: Path) -> Path:
    """Write the tokenizer files that DeBERTa-v3 has on the Hub: a SentencePiece model and two small files."""
    import sentencepiece

    sentences = [
        "the file of AB1 fi ligatures",
        "full-width letters and 10 % of the rest",
        "a b c A B C 1 2 3 f i l e",
    ]
    with (folder / "spm.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences * 20), model_writer=file, vocab_size=60, hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc", pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]",
            bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]", minloglevel=2,
        )  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    return folder


def _wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(BERT_TOKENS.values()), show_progress=False)
    return tokenizer, trainer


def _bytelevel():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(dict.fromkeys(ROBERTA_TOKENS.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer


def _unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=list(BERT_TOKENS.values()), unk_token="[UNK]", show_progress=False
    )
    return tokenizer, trainer


MAKERS = {"wordpiece": _wordpiece, "bytelevel": _bytelevel, "unigram": _unigram}

if __name__ == "__main__":
    for kind in MAKERS:
        train(kind).save(str(FOLDER / f"{kind}.json"), pretty=False)
