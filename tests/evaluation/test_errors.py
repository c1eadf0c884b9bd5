"""Kinds of errors, and those to read first, beside the plainest computation of each."""

import numpy as np
from hypothesis import given, settings
from support.corpora import LABELS, corpora, small_config

from training.corpus.data import Document
from training.evaluation.breakdown import score_corpus
from training.evaluation.errors import CONTEXT, KINDS, LISTED, SHOWN, find_errors
from training.evaluation.scoring import match


HALF = np.full(3, 0.5)


def plain_kind(entity, others, widest):
    """The kind of one wrong entity, from the definition."""
    start, end, label = entity
    characters = set(range(start, end))
    shared = [other for other in others if characters & set(range(*other[:2]))]
    if widest is not None and (end - start + 1) // 4 > widest:
        return "beyond window"
    if any(other[2] == label for other in shared):
        return "other bounds"
    if any(other[:2] == (start, end) for other in shared):
        return "other label"
    return "other bounds and label" if shared else "nothing there"


@given(corpora())
@settings(max_examples=100, deadline=None)
def test_kinds_and_rows_are_those_of_the_definition(corpus):
    documents, scored = corpus
    config = small_config()
    result = score_corpus(documents, scored, HALF, config)["errors"]
    found = scored.with_scores(scored.choose(HALF, config), config.labels)
    expected = {name: dict.fromkeys(KINDS, 0) for name in ("spurious", "missed")}
    groups = {"spurious": {}, "missed": {}}
    for number, (document, predicted) in enumerate(zip(documents, found, strict=True)):
        gold = set(document.entities)
        for name, own, others, widest in (("spurious", predicted, gold, None), ("missed", gold, predicted, 4)):
            for entity in own:
                if entity not in others:
                    kind = plain_kind(entity, others, widest)
                    expected[name][kind] += 1
                    if kind != "beyond window":
                        words = " ".join(document.text[entity[0] : entity[1]].split())
                        groups[name].setdefault((entity[2], words), []).append((number, entity, kind))
    assert result["kinds"] == expected
    for name, own in groups.items():
        rows = result[name]
        assert len(rows) == min(len(own), LISTED) and len({(row["label"], row["text"]) for row in rows}) == len(rows)
        for row in rows:
            members = own[row["label"], row["text"]]
            assert row["count"] == len(members)
            assert (row["id"], row["start"], row["end"], row["kind"]) in [
                (f"d{number}", *entity[:2], kind) for number, entity, kind in members
            ]
            if name == "spurious":
                assert row["score"] == max(found[number][entity] for number, entity, _ in members)
        rank = [row["score"] if name == "spurious" else row["count"] for row in rows]
        assert rank == sorted(rank, reverse=True)
        left = [members for key, members in own.items() if key not in {(row["label"], row["text"]) for row in rows}]
        for members in left:
            best = max(found[n][e] for n, e, _ in members) if name == "spurious" else len(members)
            assert best <= rank[-1]


def errors_of(text, gold, predicted):
    outcomes = match([gold], [predicted])
    return find_errors([Document("d", text)], outcomes, [predicted], np.zeros(len(outcomes.outcome), dtype=bool))


def test_equal_words_are_one_row_and_long_texts_are_clipped():
    text = "MTL here, mtl there, " + "a very long clause " * 40 + "the end"
    clause = (21, 21 + 19 * 40 - 1, "B")
    result = errors_of(text, [clause, (10, 13, "A"), (0, 3, "A")], {(0, 3, "B"): 0.5, (10, 13, "B"): 0.75})
    (spurious,) = result["spurious"]
    assert (spurious["label"], spurious["text"], spurious["count"], spurious["score"]) == ("B", "MTL", 2, 0.75)
    assert (spurious["before"], spurious["after"][:9], spurious["kind"]) == ("", "here, mtl", "other label")
    twice, long = result["missed"]
    assert (twice["count"], twice["kind"], long["count"], long["kind"]) == (2, "other label", 1, "nothing there")
    assert long["text"].startswith("a very long") and " … " in long["text"] and long["text"].endswith("long clause")
    assert len(long["text"]) <= SHOWN + 3 and long["after"] == "the end" and long["before"] == "MTL here, mtl there,"


def test_words_are_joined_and_context_is_short():
    words = ["word" * 3] * 100
    result = errors_of(words, [(50, 52, "A")], {})
    (row,) = result["missed"]
    assert row["text"] == "wordwordword wordwordword" and len(row["before"]) == len(row["after"]) == CONTEXT
    assert set(LABELS) > {row["label"]} and (row["start"], row["end"]) == (50, 52)
