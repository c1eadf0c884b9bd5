"""Draw texts with white space and characters of every kind, and entities in them, for exporters and importers."""

from hypothesis import strategies as st
from support.tiny import tiny_tokenizer
from support.tiny_models import tiny_config

from modeling_sener import SenerProcessor


PROCESSOR = SenerProcessor(tiny_tokenizer("wordpiece"), tiny_config())
# Line ends of every kind, tabs, white space that is not ASCII, characters outside of the BMP, combining marks.
FRAGMENTS = ["\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\xa0", "\u3000", "  ", "😀",
             "👩\u200d🔬", "𝔘", "é", "e\u0301", "東京", "ResNet-50", "1,000.5", ".", "low-rank", "'s", ";", "T1",
             "-DOCSTART-"]  # fmt: skip
FRAGMENT = st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from("ab 1.-"))
TEXTS = st.lists(FRAGMENT, min_size=1, max_size=25).map("".join)
LABELS = st.sampled_from(["Method", "Task", "I-O", "größe", "a;b"])
# Labels that brat and CoNLL cannot hold as they are, and labels that look like escaped ones.
HARD_LABELS = st.one_of(
    LABELS,
    st.sampled_from(
        ["License Grant", "Revenue/Profit Sharing", "药物💊", "100%", "a%20b", "B-", "_x0020_", "_x0020 ", "__x5F__"]
    ),
    st.text("_x0025fFAB- \t\r\n\x85\u3000%/é", min_size=1, max_size=9).filter(str.strip),
    st.text(min_size=1, max_size=5).filter(str.strip),
)


def make(text, start, end, label="Method", score=0.5):
    quote = text[start:end] if isinstance(text, str) else " ".join(text[start:end])
    return {"start": start, "end": end, "text": quote, "label": label, "score": score}


def draw_entities(data, text, places, flat=False):
    """
    Draw entities that begin with one of `places`, (start, end) each, and end with the same or a later one. They are
    nested, crossing and repeated, unless `flat`.
    """
    if not places:
        return []
    numbers = st.integers(0, len(places) - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers).map(sorted), max_size=6))
    if flat:
        kept = []
        for pair in sorted(pairs):
            kept += [pair] if not kept or pair[0] > kept[-1][1] else []
        pairs = kept
    scores = st.floats(0, 1, width=32)
    return [make(text, places[i][0], places[j][1], data.draw(HARD_LABELS), data.draw(scores)) for i, j in pairs]
