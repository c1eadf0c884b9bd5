"""The HTML report of score.py: text is escaped, numbers are complete, nothing is fetched."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from support.corpora import LABELS, WORDS, corpora, small_config

from modeling_sener.decoding import Candidates
from training.corpus.data import Document
from training.evaluation.breakdown import score_corpus
from training.evaluation.candidates import ScoredSpans
from training.evaluation.score_report import render, write_report


HOSTILE = "<script>alert('1')</script><img src=x onerror=alert(2)>\"&{{ 7 * 7 }}"
ABOUT = {"model": "m", "data": ["d.jsonl"], "texts": 1, "words": 8, "entities": 1, "wider_than_window": 0,
         "off_word_boundaries": 0, "without_tokens": 0, "duplicates_removed": 0, "trimmed": 0}  # fmt: skip
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Collect elements, attributes and text, and check that elements close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def one_document(document_id="d", labels=LABELS, word="w"):
    """The scores of one document: an A is right, a C was predicted as B, an A is missed."""
    candidates = Candidates(np.zeros(2, dtype=np.int64), np.array([0, 2]), np.array([1, 3]), np.array([0, 1]),
                            np.array([0.9, 0.8], dtype=np.float32))  # fmt: skip
    scored = ScoredSpans.join([(candidates, np.array([(i, i + 1) for i in range(WORDS)]))])
    gold = ((0, 1, labels[0]), (2, 3, labels[2]), (4, 5, labels[0]))
    return [Document(document_id, [word] * WORDS, gold)], scored


def test_text_from_outside_stays_text():
    config = small_config()
    config.id2label = {0: HOSTILE, 1: "B", 2: "C"}
    documents, scored = one_document(HOSTILE, config.labels, HOSTILE)
    result = score_corpus(documents, scored, np.full(3, 0.5), config)
    page = Page(render({**result, **ABOUT, "model": HOSTILE, "data": [HOSTILE]}))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    # Title, heading, data; labels in two tables; threshold; row and column of the confusion matrix; the document's id;
    # of three errors the words and the document's id, and of one the label.
    assert "".join(page.text).count(HOSTILE) == 16


def test_the_page_has_the_counts():
    documents, scored = one_document()
    result = score_corpus(documents, scored, np.full(3, 0.5), small_config())
    html = render({**result, **ABOUT, "wider_than_window": 3})
    page = Page(html)
    assert page.tags.count("svg") == 4
    text = " ".join(" ".join(page.text).split())
    assert "Precision 50.0" in text and "Recall 33.3" in text and "F1 40.0" in text
    assert "3 gold entities are wider than the model's window" in text
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>.*?</tr>", html, flags=re.DOTALL)]
    assert ["A", "1", "0", "0", "1"] in rows  # gold A: one right, one missed
    assert ["C", "0", "1", "0", "0"] in rows  # gold C: predicted as B
    assert ["d", "8", "3", "1", "1", "2", "40.0"] in rows
    assert rows.count(["spurious", "0", "1", "0", "0", "0"]) == rows.count(["missed", "0", "1", "0", "1", "0"]) == 1
    assert ["w", "w", "w", "w", "w", "w", "w", "w", "B", "other", "label", "1", "0.80", "d", "2–3"] in rows
    assert "fitted on these very documents" not in text
    assert "Area under the curve 33.3 up to a recall of 33.3" in text
    assert "Precision at 80 % recall – not reached" in text


def test_fitted_thresholds_carry_a_warning():
    documents, scored = one_document()
    result = score_corpus(documents, scored, np.full(3, 0.5), small_config())
    page = Page(render({**result, **ABOUT, "before_fitting": {"f1": 0.25}}))
    assert "fitted on these very documents (micro F1 25.0" in " ".join(" ".join(page.text).split())


@pytest.mark.parametrize("entities, few", [(99, True), (100, False)])
def test_few_entities_carry_a_warning(entities, few):
    result = score_corpus(*one_document(), np.full(3, 0.5), small_config())
    assert (f"{entities} gold entities are few" in render({**result, **ABOUT, "entities": entities})) == few


def test_nothing_is_fetched():
    documents, scored = one_document()
    html = render({**score_corpus(documents, scored, np.full(3, 0.5), small_config()), **ABOUT})
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "image"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert not re.findall(r"url\((?!#)|@import", html)
    assert "default-src 'none'" in html


def test_plots_follow_the_colours_of_the_page():
    documents, scored = one_document()
    html = render({**score_corpus(documents, scored, np.full(3, 0.5), small_config()), **ABOUT})
    plots = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): *([^;\"]+)", plots)) <= {
        "none",
        "currentColor",
        "var(--main)",
        "var(--faint)",
    }
    assert not re.findall(r"#[0-9a-f]{6}\b(?![\w-])", plots)


@given(corpora())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_result_can_be_written_as_a_page(corpus):
    documents, scored = corpus
    result = score_corpus(documents, scored, np.full(3, 0.5), small_config())
    assert Page(render({**result, **ABOUT})).tags.count("h1") == 1


@pytest.mark.parametrize("document_id", ["东京", "lone \ud800"])
def test_any_id_can_be_written(tmp_path, document_id):
    documents, scored = one_document(document_id)
    write_report({**score_corpus(documents, scored, np.full(3, 0.5), small_config()), **ABOUT}, tmp_path / "a.html")
    assert document_id.replace("\ud800", "?") in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]
