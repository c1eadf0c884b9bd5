"""The processor: words, tokens, offsets, thresholds and entities."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from modeling_sener import SenerConfig, SenerProcessor


KINDS = ("wordpiece", "bytelevel", "unigram")
LABELS = ["Method", "Task", "Metric"]
WINDOW = 4


def config(**fields):
    return SenerConfig(id2label=dict(enumerate(LABELS)), span_window=WINDOW, **fields)


@pytest.fixture(scope="module", params=KINDS)
def processor(request):
    return SenerProcessor(tiny_tokenizer(request.param), config())


@pytest.fixture(scope="module")
def wordpiece():
    return SenerProcessor(tiny_tokenizer("wordpiece"), config())


def words(processor, text):
    return [text[start:end] for start, end in processor.split_words(text)]


def outputs(inputs, cells=()):
    """Logits in which only `cells` (text, first word, last word, label, logit) are likely."""
    words = max(map(len, inputs.word_offsets))
    logits = torch.full((len(inputs.texts), words, 2 * WINDOW + 1, len(LABELS)), -8.0)
    for text, first, last, label, logit in cells:
        logits[text, first, last - first + WINDOW, label] = logit
        logits[text, last, first - last + WINDOW, label] = logit
    return SimpleNamespace(logits=logits)


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("low-rank ResNet50, x_1!", "low - rank ResNet50 , x_1 !"),
        ("0.5 1,000.25 v1.5B 93.5% 3, 4.", "0.5 1,000.25 v1.5B 93.5 % 3 , 4 ."),
        ("don't U.S.", "don ' t U . S ."),
        ("naïve cafe\u0301 Straße", "naïve cafe\u0301 Straße"),
        ("日本語 ひらカター学x", "日 本 語 ひ ら カ タ ー 学 x"),
        ("ภาษา ນີ້ ខ្មែរ", "ภ า ษ า ນີ້ ខ្ មែ រ"),
        ("한국어 русский हिन्दी", "한국어 русский हिन्दी"),
        ("a\u00a0b\r\nc\td\u3000e", "a b c d e"),
        ("in\u00adfor\u00admation می\u200cخواهم", "in\u00adfor\u00admation می\u200cخواهم"),
        ("a\u200bb\x00c\ufeff", "a \u200b b \x00 c \ufeff"),
        ("👍🏽 ❤️x", "👍 🏽 ❤️ x"),
        ("", ""),
        (" \t\r\n\u2003", ""),
    ],
)
def test_texts_are_split_into_these_words(wordpiece, text, expected):
    assert words(wordpiece, text) == expected.split(" ")[: len(expected) or 0]


SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
SPECIAL = [
    "▁",
    "Ġ",
    "##",
    "ﬁ",
    "Ａ",
    "ß",
    "\u0301",
    "ภาษา",
    "We",
    "👩‍💻",
    "🇫🇷",
    "❤️",
    "漢字",
    "한글",
    "\xa0",
    "\r\n",
    "e\u0301",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\x00",
    "\x1c",
    "\ud800",
    "\udfff",
    "0.5",
    "1,000",
    "[SEP]",
    "</s>",
    "▁",
    "Ġ",
    "##",
    "ﬁ",
    "Ａ",
    "ß",
    "\u0301",
    "ภาษา",
    "We",
]
ANYTHING = st.lists(
    st.one_of(st.sampled_from(SPECIAL), st.characters(exclude_categories=()), st.sampled_from(" ab1.,-")), max_size=30
).map("".join)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_words_cover_everything_but_spaces(text):
    offsets = SenerProcessor.split_words(_splitter(), text)
    covered = [position for start, end in offsets for position in range(start, end)]
    assert covered == [position for position, character in enumerate(text) if character not in SPACES]
    assert all(start < end for start, end in offsets)


@settings(max_examples=100, deadline=None)
@given(st.lists(ANYTHING, min_size=1, max_size=3), st.data())
def test_entities_are_slices_of_the_callers_text(texts, data):
    processor = _splitter(data.draw(st.sampled_from(KINDS)))
    inputs = processor(texts)
    every = [
        (text, first, last, (first + last) % len(LABELS), 5.0 + first)
        for text, offsets in enumerate(inputs.word_offsets)
        for first in range(len(offsets))
        for last in range(first, min(first + WINDOW + 1, len(offsets)))
    ]
    results = processor.post_process(outputs(inputs, every), inputs)
    for text, offsets, entities in zip(texts, inputs.word_offsets, results, strict=True):
        assert len(offsets) <= len(entities)
        for entity in entities:
            assert text[entity["start"] : entity["end"]] == entity["text"] != ""


_PROCESSORS = {}


def _splitter(kind="wordpiece"):
    if kind not in _PROCESSORS:
        _PROCESSORS[kind] = SenerProcessor(tiny_tokenizer(kind), config())
    return _PROCESSORS[kind]


# Tokens


def test_words_without_tokens_are_left_out(wordpiece):
    text = "We \x00train\u200b ResNet-50 \x07"
    inputs = wordpiece(text)
    assert [text[start:end] for start, end in inputs.word_offsets[0]] == ["We", "train", "ResNet", "-", "50"]
    tokens = wordpiece.tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"
    assert inputs.word_index[0, 0] == inputs.word_index[0, -1] == 0
    assert inputs.word_index[0].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert inputs.word_index[0, 1] == 1 and tokens[1] == "we"


def test_batches_are_padded_on_the_right(processor):
    texts = ["We train ResNet-50 on ImageNet .", "", "long texts"]
    batch = processor(texts)
    assert batch.word_index.dtype == batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    for row, text in enumerate(texts):
        alone = processor(text)
        length = alone.input_ids.shape[1]
        for key in ("input_ids", "attention_mask", "word_index"):
            assert torch.equal(batch[key][row, :length], alone[key][0])
        assert (batch.input_ids[row, length:] == processor.tokenizer.pad_token_id).all()
        assert not batch.attention_mask[row, length:].any() and not batch.word_index[row, length:].any()
        assert batch.word_offsets[row] == alone.word_offsets[0]
    assert batch.texts == texts


def test_an_empty_text_has_no_entities(processor):
    for text in ("", " \r\n\t\u3000"):
        inputs = processor(text)
        assert inputs.input_ids.shape == (1, 2) and inputs.word_index.max() == 0
        assert processor.post_process(outputs(inputs), inputs) == [[]]


def test_every_word_is_tokenized_as_after_a_space():
    tokenizer = tiny_tokenizer("bytelevel")
    processor = SenerProcessor(tokenizer, config())
    assert processor("the fox").input_ids.tolist() == [
        [tokenizer.cls_token_id, *tokenizer(" the fox", add_special_tokens=False).input_ids, tokenizer.sep_token_id]
    ]


def test_special_tokens_in_a_text_are_text(processor):
    tokens = processor.tokenizer.special_tokens_map
    special = {processor.tokenizer.convert_tokens_to_ids(tokens[name]) for name in tokens if name != "unk_token"}
    assert processor.tokenizer.mask_token_id in special
    inputs = processor("[CLS] <s> [MASK] <mask> [SEP] </s>")
    assert not special & set(inputs.input_ids[0, 1:-1].tolist())


@pytest.mark.parametrize("kind", ["wordpiece", "bytelevel"])  # a Unigram model may make them from text
def test_special_tokens_among_words_are_text(kind):
    processor = SenerProcessor(tiny_tokenizer(kind), config())
    inputs = processor(["[MASK]", "<mask>", "</s>"], is_split_into_words=True)
    assert processor.tokenizer.mask_token_id not in inputs.input_ids
    assert processor.tokenizer.sep_token_id not in inputs.input_ids[0, :-1]


def test_the_tokenizers_own_truncation_and_padding_are_not_used(wordpiece):
    tokenizer = tiny_tokenizer("wordpiece")
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=12, pad_id=tokenizer.pad_token_id)
    before = tokenizer.backend_tokenizer.to_str()
    processor = SenerProcessor(tokenizer, config())
    text = "we train " * 50
    assert torch.equal(processor(text).input_ids, wordpiece(text).input_ids)
    assert processor("we").input_ids.shape == (1, 3)
    assert tokenizer.backend_tokenizer.to_str() == before
    processor.tokenizer(["we", "we train"], padding="max_length", max_length=9, truncation=True)
    assert processor("we").input_ids.shape == (1, 3)
    assert len(tokenizer("we train we train we train we train").input_ids) == 10


class Borrowed:
    """A tokenizer that another thread is using, before tokenizers 0.23: changing it raises an error."""

    def __init__(self, tokenizer):
        self.__dict__["own"] = tokenizer

    def __getattr__(self, name):
        return self.refuse if name.startswith(("no_", "enable_")) else getattr(self.own, name)

    def __setattr__(self, name, value):
        self.refuse()

    def refuse(self, *args):
        raise RuntimeError("Already borrowed")


def test_threads_do_not_change_the_tokenizer_that_they_share():
    processor = SenerProcessor(tiny_tokenizer("wordpiece"), SenerConfig())
    expected = processor("We train ResNet-50 on it.")["input_ids"].tolist()
    processor.tokenizer._tokenizer = Borrowed(processor.tokenizer._tokenizer)
    assert processor("We train ResNet-50 on it.")["input_ids"].tolist() == expected


def test_a_long_text_is_whole_and_without_a_warning(processor, caplog, recwarn):
    tokenizer = processor.tokenizer
    own = SenerProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, model_max_length=16,
                                                 **tokenizer.special_tokens_map), config())  # fmt: skip
    inputs = own("We train . " * 2000)
    assert len(inputs.word_offsets[0]) == 6000 == inputs.word_index.max()
    assert not caplog.records and not [w for w in recwarn if "length" in str(w.message)]


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "漢" * 50_000, "1." * 100_000, "\u0301" * 300_000, "a \u200d" * 50_000]
)
def test_a_hostile_text_is_read_whole(processor, text):
    """A word pattern that backtracks would take forever on these texts."""
    inputs = processor(text)
    assert inputs.word_index.max() == len(inputs.word_offsets[0])


def test_lists_of_words_have_offsets_in_words(wordpiece):
    text = ["We", "\x00", "train", "", "ResNet-50", "\ud800", "New York"]
    inputs = wordpiece([text, []], is_split_into_words=True)
    assert inputs.word_offsets == [[(0, 1), (2, 3), (4, 5), (6, 7)], []]
    assert wordpiece(text, is_split_into_words=True).word_offsets == inputs.word_offsets[:1]
    entities = wordpiece.post_process(outputs(inputs, [(0, 1, 3, 0, 3.0)]), inputs)
    expected = {"start": 2, "end": 7, "text": "train  ResNet-50 \ud800 New York", "label": "Method"}
    assert [{k: v for k, v in e.items() if k != "score"} for e in entities[0]] == [expected] and entities[1] == []


@pytest.mark.parametrize(
    ("texts", "split", "message"),
    [
        (None, False, "NoneType.*string"),
        (["a", 5], False, r"texts\[1\].*int"),
        ([b"a"], False, r"texts\[0\].*bytes"),
        ([["a", "b"]], False, r"texts\[0\].*list.*is_split_into_words"),
        ("a b", True, "str.*list of words"),
        ([["a"], "b"], True, r"texts\[1\].*str"),
        ([["a", None]], True, r"texts\[0\]\[1\].*NoneType"),
    ],
)
def test_an_input_that_is_no_text_is_named(wordpiece, texts, split, message):
    with pytest.raises(TypeError, match=message):
        wordpiece(texts, is_split_into_words=split)


def test_an_empty_list_and_other_types_of_tensors_are_refused(wordpiece):
    with pytest.raises(ValueError, match="no text"):
        wordpiece([])
    with pytest.raises(ValueError, match="'np'"):
        wordpiece("a", return_tensors="np")


# Entities


@pytest.fixture
def result(wordpiece):
    inputs = wordpiece(["We train ResNet-50 on ImageNet .", "", "Long texts"])
    cells = [(0, 2, 4, 0, 2.0), (0, 2, 2, 1, 1.0), (0, 4, 6, 1, 0.5), (0, 6, 6, 2, 1.0), (2, 0, 1, 1, 0.2)]
    return outputs(inputs, cells), inputs


def found(entities):
    return [[(entity["text"], entity["label"]) for entity in text] for text in entities]


def test_entities_have_offsets_text_label_and_score(wordpiece, result):
    entities = wordpiece.post_process(*result)
    assert found(entities) == [
        [("ResNet", "Task"), ("ResNet-50", "Method"), ("ImageNet", "Metric")], [], [("Long texts", "Task")]
    ]  # fmt: skip
    assert entities[0][1] == {
        "start": 9, "end": 18, "text": "ResNet-50", "label": "Method", "score": pytest.approx(0.8808, abs=1e-4)
    }  # fmt: skip
    json.dumps(entities)


def test_options_of_a_call_choose_the_entities(wordpiece, result):
    assert found(wordpiece.post_process(*result, threshold=0.85)) == [[("ResNet-50", "Method")], [], []]
    assert found(wordpiece.post_process(*result, threshold={"Task": 0.7, "Metric": 0.9})) == [
        [("ResNet", "Task"), ("ResNet-50", "Method")], [], []
    ]  # fmt: skip
    assert found(wordpiece.post_process(*result, allow_nested=False))[0] == [
        ("ResNet-50", "Method"), ("ImageNet", "Metric")
    ]  # fmt: skip
    # Without the label Method, "50 on ImageNet" crosses no other entity.
    assert found(wordpiece.post_process(*result, labels=["Task"])) == [
        [("ResNet", "Task"), ("50 on ImageNet", "Task")], [], [("Long texts", "Task")]
    ]  # fmt: skip
    assert found(wordpiece.post_process(*result, labels=[])) == [[], [], []]


def test_default_options_are_the_configs(result):
    thresholds = {"Method": 0.9, "Task": 0.6, "Metric": 0.5}
    processor = SenerProcessor(tiny_tokenizer("wordpiece"), config(threshold=thresholds, allow_nested=False))
    assert found(processor.post_process(*result))[0] == [("ResNet", "Task"), ("ImageNet", "Metric")]
    assert found(processor.post_process(*result, threshold={"Method": 0.5}))[0] == [
        ("ResNet-50", "Method"), ("ImageNet", "Metric")
    ]  # fmt: skip
    assert processor.thresholds().tolist() == [0.9, 0.6, 0.5]


def test_outputs_may_carry_gradients(wordpiece, result):
    output, inputs = result
    expected = wordpiece.post_process(output, inputs)
    output.logits.requires_grad_()
    assert wordpiece.post_process(output, inputs) == expected


def test_labels_per_span_allows_one_label_or_several(wordpiece):
    inputs = wordpiece("We train")
    both = outputs(inputs, [(0, 0, 1, 0, 1.0), (0, 0, 1, 2, 2.0)])
    assert found(wordpiece.post_process(both, inputs)) == [[("We train", "Method"), ("We train", "Metric")]]
    best = SenerProcessor(tiny_tokenizer("wordpiece"), config(labels_per_span="best"))
    assert found(best.post_process(both, inputs)) == [[("We train", "Metric")]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"threshold": -0.1}, "threshold -0.1"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"threshold": True}, "threshold True"),
        ({"threshold": "0.5"}, "threshold '0.5'"),
        ({"threshold": {"Task": 2}}, "2 for 'Task'"),
        ({"threshold": {"Tsk": 0.5}}, "unknown label 'Tsk'"),
        ({"labels": ["Task", "Data"]}, "unknown label 'Data'"),
        ({"labels": "Task"}, "list of labels"),
    ],
)
def test_wrong_options_are_named(wordpiece, result, options, message):
    with pytest.raises(ValueError, match=message):
        wordpiece.post_process(*result, **options)


def test_inputs_that_lost_their_texts_are_an_error_that_says_what_to_do(wordpiece, result):
    scores, inputs = result
    with pytest.raises(ValueError, match="inputs.to"):
        wordpiece.post_process(scores, dict(inputs))
    with pytest.raises(ValueError, match="belong together"):
        wordpiece.post_process(scores, wordpiece("We train"))
    moved = inputs.to("cpu")
    assert moved.texts == inputs.texts and wordpiece.post_process(scores, moved)
    unpickled = pickle.loads(pickle.dumps(inputs))
    assert wordpiece.post_process(scores, unpickled) == wordpiece.post_process(scores, inputs)


def test_scores_that_are_not_finite_raise(wordpiece, result):
    scores, inputs = result
    scores.logits[2, 1, WINDOW, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        wordpiece.post_process(scores, inputs)


BLANK_LINES = ["\n\n", "\r\n\r\n", "\r\r", "\n \t\n", "\n\r\n"]
NOT_BLANK = [" ", "\n", "\r\n", "\t", "\n\t"]


@pytest.mark.parametrize("gap", BLANK_LINES + NOT_BLANK)
def test_no_span_holds_a_blank_line_unless_the_config_allows_it(gap):
    text = f"we{gap}we and we"
    for crosses in (True, False):
        processor = SenerProcessor(tiny_tokenizer("wordpiece"), config(cross_blank_lines=crosses))
        inputs = processor([text, "we we", text])
        every = [(i, 0, 1, 0, 5.0) for i in range(3)] + [(i, 2, 3, 0, 5.0) for i in (0, 2)]
        found = processor.post_process(outputs(inputs, every), inputs)
        spans = [[entity["text"] for entity in entities] for entities in found]
        first = [f"we{gap}we"] * (crosses or gap in NOT_BLANK)
        assert spans == [[*first, "and we"], ["we we"], [*first, "and we"]]


def test_a_list_of_words_has_no_lines():
    processor = SenerProcessor(tiny_tokenizer("wordpiece"), config(cross_blank_lines=False))
    inputs = processor([["we", "\n\n", "we"]], is_split_into_words=True)
    (found,) = processor.post_process(outputs(inputs, [(0, 0, len(inputs.word_offsets[0]) - 1, 0, 5.0)]), inputs)
    assert len(found) == 1
