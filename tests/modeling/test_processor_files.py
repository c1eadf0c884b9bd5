"""The processor's files: saved and loaded, and made from an encoder's."""

import json
import warnings

import pytest
import torch
from support.fresh import run_fresh
from support.tiny import sentencepiece_folder, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import DebertaV2Config

from modeling_sener import SenerConfig, SenerProcessor
from modeling_sener.tokenization import WORD_PATTERN


KINDS = ("wordpiece", "bytelevel", "unigram")
LABELS = ["Method", "Task", "Metric"]


def config(**fields):
    return SenerConfig(id2label=dict(enumerate(LABELS)), **fields)


@pytest.fixture(scope="module", params=KINDS)
def processor(request):
    return SenerProcessor(tiny_tokenizer(request.param), config())


@pytest.fixture(scope="module")
def wordpiece():
    return SenerProcessor(tiny_tokenizer("wordpiece"), config())


TEXTS = ["We train ResNet-50 on ImageNet .", "0.5 ＡＢ ﬁ 漢字 \ud800 [SEP] \x00"]


def test_a_saved_processor_gives_the_same_inputs(processor, tmp_path):
    assert set(processor.save_pretrained(tmp_path)) == {str(file) for file in tmp_path.iterdir()}
    names = {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json"}
    assert {file.name for file in tmp_path.iterdir() if file.suffix != ".py"} == names
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = SenerProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded(TEXTS).input_ids, processor(TEXTS).input_ids)
    assert loaded.config.labels == LABELS and loaded.word_pattern == WORD_PATTERN
    assert loaded.tokenizer.special_tokens_map == processor.tokenizer.special_tokens_map
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for name in names:
        assert (again / name).read_text() == (tmp_path / name).read_text()


def test_a_checkpoint_may_carry_another_pattern(tmp_path):
    SenerProcessor(tiny_tokenizer("wordpiece"), config(), word_pattern=r"\S+").save_pretrained(tmp_path)
    assert SenerProcessor.from_pretrained(tmp_path).split_words("low-rank 0.5,") == [(0, 8), (9, 13)]
    with pytest.raises(ValueError, match=r"word_pattern '\('"):
        SenerProcessor(tiny_tokenizer("wordpiece"), config(), word_pattern="(")


def test_saving_a_processor_keeps_an_existing_config(wordpiece, tmp_path):
    config(threshold=0.25).save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    wordpiece.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    assert SenerProcessor.from_pretrained(tmp_path).config.threshold == 0.25


def test_a_folder_of_another_model_is_refused(tmp_path):
    DebertaV2Config().save_pretrained(tmp_path)
    tiny_tokenizer("unigram").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a SeNER checkpoint.*deberta-v2"):
        SenerProcessor.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        SenerProcessor.from_pretrained(tmp_path / "nothing")


LOAD = """
import json
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained({folder!r}, trust_remote_code=True)
assert type(processor).__name__ == "SenerProcessor"
processor.save_pretrained({again!r})
processor = AutoProcessor.from_pretrained({again!r}, trust_remote_code=True)
print(json.dumps(processor(json.loads({texts!r})).input_ids.tolist()))
"""


def test_auto_processor_loads_a_saved_processor(wordpiece, tmp_path):
    folder, again = str(tmp_path / "folder"), str(tmp_path / "again")
    wordpiece.save_pretrained(folder)
    printed = run_fresh(LOAD.format(folder=folder, again=again, texts=json.dumps(TEXTS)), tmp_path)
    assert json.loads(printed.splitlines()[-1]) == wordpiece(TEXTS).input_ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_of_an_encoder_is_taken_from_its_file(kind, tmp_path):
    tokenizer = tiny_tokenizer(kind)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.save_pretrained(tmp_path)
    model_type = {"wordpiece": "bert", "bytelevel": "roberta", "unigram": "deberta-v2"}[kind]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    processor = SenerProcessor.from_backbone(tmp_path, config())
    expected = SenerProcessor(tokenizer, config())
    assert torch.equal(processor(TEXTS).input_ids, expected(TEXTS).input_ids)
    assert processor.tokenizer.special_tokens_map == tokenizer.special_tokens_map


@pytest.fixture(scope="module")
def deberta_folder(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = sentencepiece_folder(tmp_path_factory.mktemp("deberta"))
    return folder, sentencepiece.SentencePieceProcessor(str(folder / "spm.model"))


def test_an_encoder_of_vocabulary_and_merges(tmp_path):
    tokenizer = tiny_tokenizer("bytelevel")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    processor = SenerProcessor.from_backbone(tmp_path, config())
    assert torch.equal(processor(TEXTS).input_ids, SenerProcessor(tokenizer, config())(TEXTS).input_ids)
    assert processor.tokenizer.mask_token_id == tokenizer.mask_token_id


def test_debertas_tokenizer_keeps_sentencepieces_normalisation(deberta_folder, tmp_path):
    folder, sentencepiece = deberta_folder
    processor = SenerProcessor.from_backbone(folder, config())
    processor.save_pretrained(tmp_path)
    loaded = SenerProcessor.from_pretrained(tmp_path)
    tokenizer = loaded.tokenizer
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 1, 2)
    assert tokenizer.unk_token_id == 3 and tokenizer.mask_token_id == sentencepiece.vocab_size()
    for text in ("ＡＢ１ ﬁle\xa0the", "the  file", "ﬁ", "x 漢 ②"):
        assert tokenizer(text).input_ids == [1, *sentencepiece.encode(text), 2]
    words = ["ＡＢ１", "ﬁle", "%", "漢"]
    inputs = loaded(words, is_split_into_words=True)
    tokens = [token for word in words for token in sentencepiece.encode(word)]
    assert inputs.input_ids.tolist() == [[1, *tokens, 2]]
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.encode("ﬁle").ids == tokenizer("file").input_ids
