"""Draw random gold documents, with random scored spans that a model could have found in them."""

import numpy as np
from hypothesis import strategies as st

from modeling_sener import SenerConfig
from modeling_sener.decoding import Candidates
from training.corpus.data import Document
from training.evaluation.candidates import CURVE_FLOOR, ScoredSpans


LABELS = ["A", "B", "C"]
WORDS = 8


def small_config(**fields):
    return SenerConfig(id2label=dict(enumerate(LABELS)), label2id=None, span_window=3, **fields)


@st.composite
def spans(draw, least, most):
    start = draw(st.integers(0, WORDS - least))
    return start, draw(st.integers(start + least, min(start + most, WORDS)))


@st.composite
def corpora(draw, least=0):
    """
    Draw (documents, scored spans).

    Texts have `WORDS` words of three characters. Gold entities begin and end with words; some are longer than the
    window of `small_config`. Candidates fit into that window. Each gold entity that fits is a candidate with
    probability one half. Scores are often equal.
    """
    documents, texts = [], []
    for number in range(draw(st.integers(least, 4))):
        gold = draw(st.lists(st.tuples(spans(1, WORDS), st.integers(0, 2)), max_size=6, unique=True))
        wrong = draw(st.lists(st.tuples(spans(1, 4), st.integers(0, 2)), max_size=6, unique=True))
        found = sorted(
            {*wrong, *(entity for entity in gold if entity[0][1] - entity[0][0] <= 4 and draw(st.booleans()))}
        )
        score = [float(np.float32(draw(st.integers(1, 99)) / 100)) for _ in found]
        kept = [i for i in range(len(found)) if score[i] >= CURVE_FLOOR]
        columns = [[found[i][0][0] for i in kept], [found[i][0][1] for i in kept], [found[i][1] for i in kept]]
        start, end, label = (np.array(column, dtype=np.int64) for column in columns)
        texts.append((Candidates(start * 0, start, end, label, np.array([score[i] for i in kept], dtype=np.float32)),
                      np.array([(4 * i, 4 * i + 3) for i in range(WORDS)])))  # fmt: skip
        entities = tuple((4 * start, 4 * end - 1, LABELS[label]) for (start, end), label in gold)
        documents.append(Document(f"d{number}", "abc " * WORDS, entities))
    return documents, ScoredSpans.join(texts)
