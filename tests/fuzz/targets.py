"""Targets of the coverage-guided run: each turns arbitrary bytes into a text, or into an input of the decoder."""

import numpy as np
import torch
from support import references_decoding as references
from support.decoding import decode

from modeling_sener.decoding import Candidates, select

from .properties import KINDS, check_texts, pipeline, require


# Few values, far apart: ties are common and exact, and rounding cannot reorder scores.
LEVELS = np.array([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0])
NOT_FINITE = (np.nan, np.inf, -np.inf)
THRESHOLDS = (None, 0.0, 0.25, 0.4, 0.5, 0.55, 0.6, 0.85, 1.0)


def text_of(data: bytes) -> str:
    """Decode all but the first byte as UTF-8; each invalid byte becomes a lone surrogate."""
    return data[1:].decode("utf-8", "surrogateescape")


def processor(data: bytes):
    """Check words, tokens and offsets of a text; the first byte chooses the tokenizer."""
    kind = list(KINDS)[data[0] % len(KINDS)] if data else "checkpoint"
    check_texts(pipeline(kind).processor, [text_of(data), "", text_of(data[:1] + data[:0:-1])])


def choice(data: bytes):
    """Check `select` on any candidates of a text: the first byte holds the options, four more bytes each candidate."""
    flags = data[0] if data else 0
    rows = np.frombuffer(data[1:257], dtype=np.uint8)[: len(data[1:257]) // 4 * 4].reshape(-1, 4).astype(np.int64)
    spans = {}  # (span, label) -> score, as each has one score
    for start, width, label, score in (rows % [24, 12, 4, 256]).tolist():
        spans[start, start + 1 + width, label] = score / 255
    fields = [np.array(column, dtype=np.int64) for column in zip(*spans, strict=True)] or [np.zeros(0, np.int64)] * 3
    scores = np.array(list(spans.values()), dtype=np.float32)
    how = {"labels_per_span": ("all", "best")[flags & 1], "allow_nested": bool(flags & 2)}
    found = select(Candidates(np.zeros_like(fields[0]), *fields, scores), **how)
    candidates = [(*span, score) for span, score in zip(spans, scores.tolist(), strict=True)]
    require(
        as_tuples(found) == references.choose(candidates, **how), f"other spans than by brute force: {spans} {how}"
    )


def decoder(data: bytes):
    """Check `decode` on any logits: twelve bytes hold sizes and options, the others levels or non-finite values."""
    head, body = data[:12].ljust(12, b"\0"), data[12:] or b"\0"
    window, labels, batch = 1 + head[0] % 4, 1 + head[1] % 3, 1 + head[2] % 2
    lengths = [size % 9 for size in head[3 : 3 + batch]]
    thresholds = [THRESHOLDS[b % len(THRESHOLDS)] for b in head[6 : 6 + labels]]
    how = {
        "triangles": ("both", "upper")[head[9] >> 3 & 1],
        "triangle_mean": ("logit", "probability")[head[9] & 1],
        "labels_per_span": ("all", "best")[head[9] >> 1 & 1],
        "allow_nested": bool(head[9] >> 2 & 1),
    }
    before = window if how["triangles"] == "both" else 0
    shape = (batch, max(lengths), before + window + 1, labels)
    values = np.concatenate([np.resize(LEVELS, 253), NOT_FINITE])
    logits = np.resize(values[np.frombuffer(body, dtype=np.uint8)], shape)
    rows, columns = np.arange(shape[1])[:, None], np.arange(shape[2]) - before
    others = rows + columns
    valid = np.stack([(rows < length) & (others >= 0) & (others < length) for length in lengths])
    wanted = torch.tensor([float("inf") if t is None else t for t in thresholds], dtype=torch.float64)
    arguments = (torch.from_numpy(logits).float(), torch.tensor(lengths), wanted)
    if not np.isfinite(logits[valid]).all():
        try:
            decode(*arguments, **how, chunk=1 + head[10] % 10)
        except FloatingPointError:
            return
        raise AssertionError("scores that are not finite pass unnoticed")
    found = decode(*arguments, **how, chunk=1 + head[10] % 10)
    for text, length in enumerate(lengths):
        expected = references.decode(logits[text].tolist(), length, thresholds, window, **how)
        spans = [candidate[:3] for candidate in as_tuples(found[text])]
        require(spans == [span[:3] for span in expected], f"text {text}: other spans than by brute force: {how}")
        require(
            np.allclose(found[text].score, [span[3] for span in expected], atol=1e-6), f"text {text}: other scores"
        )


def as_tuples(found: Candidates) -> list[tuple]:
    return list(zip(*(field.tolist() for field in found[1:]), strict=True))


TARGETS = {"processor": processor, "choice": choice, "decoder": decoder}
