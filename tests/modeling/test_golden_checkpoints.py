"""Token ids, words and entities are the recorded ones, for a WordPiece and a SentencePiece tokenizer."""

import pytest
from support.golden_checkpoints import CHECKPOINTS, RECORDED, golden

from training.publishing.check_published import TEXTS, record


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_token_ids_and_entities_are_the_recorded_ones(kind, tmp_path):
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    found, expected = record(CHECKPOINTS[kind](tmp_path)), golden(kind)
    assert tuple(expected["texts"]) == TEXTS and set(expected) == set(RECORDED)
    for name in ("labels", "input_ids", "word_index"):
        assert found[name] == expected[name], (
            f"{name}: `python tests/tools/version_matrix.py --record` where that is meant"
        )
    for ours, recorded in zip(found["entities"], expected["entities"], strict=True):
        assert [entity[:3] for entity in ours] == [entity[:3] for entity in recorded]
        assert [entity[3] for entity in ours] == pytest.approx([entity[3] for entity in recorded], abs=1e-4)
    assert sum(map(len, expected["entities"])) > 5
