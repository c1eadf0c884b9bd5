"""Words of a text, and the tokenizers that cut them into tokens: loaded, and changed to what SeNER needs."""

import json
import re

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Split
from transformers import AutoTokenizer, DebertaV2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import DebertaV2Converter
from transformers.utils import cached_file


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# Scripts without spaces between words: each letter, with its marks, is a word.
UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc\uff70]&&[\p{L}\p{Nl}]]"
LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]&&[^{UNSPACED}]]"
# Joins two letters to one word: soft hyphen, zero-width (non-)joiner and word joiner; a number's point or comma.
JOINT = r"[\u00ad\u200c\u200d\u2060]++|(?<=\p{Nd})[.,](?=\p{Nd})"
# Words as SciREX has them: "low-rank" is three, "ResNet50" and "1,000.5" are one, any other character is one of its
# own. Every repetition is possessive, so that the time is linear whatever the text.
WORD_PATTERN = rf"{UNSPACED}\p{{M}}*+|{LETTER}++(?:(?:{JOINT}){LETTER}++)*+|\S\p{{M}}*+"

_MARK, _PROBES = "\ue000", " \naA1_-.漢あก한بа\u0301"  # characters at which a pattern is asked for an empty match
_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which tokenizers rejects, one for one: offsets stay the same."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def own_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Copy a tokenizer: the copy neither truncates nor pads, and treats each word as one that follows a space."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    _put_space_before_words(state["pre_tokenizer"] or {})
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), padding_side="right", **tokenizer.special_tokens_map
    )


def _put_space_before_words(pre_tokenizer: dict):
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
        if step.get("type") == "Metaspace" and step["prepend_scheme"] == "never":
            step["prepend_scheme"] = "first"


def backbone_tokenizer(name: str, options: dict) -> PreTrainedTokenizerFast:
    """
    Load an encoder's tokenizer with the normalisation that the encoder was trained with, from the files themselves:
    transformers 5 rebuilds some tokenizers, and DeBERTa-v2's loses SentencePiece's character map.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    sentencepiece = optional_file(name, "spm.model", options)
    if sentencepiece is not None and isinstance(tokenizer, DebertaV2Tokenizer):
        tokenizer.vocab_file = sentencepiece
        backend = DebertaV2Converter(tokenizer).converted()
    else:
        file = optional_file(name, "tokenizer.json", options)
        backend = tokenizer.backend_tokenizer if file is None else Tokenizer.from_file(file)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map)


def optional_file(name: str, file: str, options: dict) -> str | None:
    """The path of a file, or `None` if there is none. Offline, a file that is not in the cache counts as missing."""
    return cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )


def only_hub_options(options: dict) -> dict:
    """Pick the options that say how a file is fetched from the Hub."""
    return {name: options[name] for name in HUB_OPTIONS if options.get(name) is not None}


def word_splitter(word_pattern: str) -> Split:
    """
    Make the splitter of a text into the words that a pattern (Oniguruma) matches.

    Raises:
        ValueError: it is no regular expression, or it matches where there is nothing.
    """
    try:
        splitter = Split(Regex(word_pattern), behavior="removed", invert=True)
        at_start = Replace(Regex(rf"\A(?:{word_pattern})"), _MARK)
    except Exception as error:  # tokenizers raises nothing more precise
        raise ValueError(f"word_pattern {word_pattern!r} is no regular expression: {error}") from error
    if any(at_start.normalize_str(probe) == _MARK + probe for probe in _PROBES):
        raise ValueError(f"word_pattern {word_pattern!r} matches the empty string: a word has at least one character "
                         "(+ in place of *, no empty alternative)")  # fmt: skip
    return splitter


def pad_inputs(ids: list[torch.Tensor], index: list[torch.Tensor], pad_id: int | None) -> dict[str, torch.Tensor]:
    """
    Pad tokens and words of several texts on the right: the model's inputs, each *Shape:* (B, T). A tokenizer without a
    padding token (`None`) pads with token 0, which `attention_mask` hides as well.
    """
    mask = [torch.ones_like(text) for text in ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_id or 0),
        "attention_mask": pad(mask, batch_first=True),
        "word_index": pad(index, batch_first=True),
    }
