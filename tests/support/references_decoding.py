"""Reference for decoding: Python loops over all pairs and all accepted spans."""

import math


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def decode(logits, length, thresholds, window, triangles, triangle_mean, labels_per_span, allow_nested):
    """
    One text: `logits[i][k][r]` of the band (nested lists), a threshold or `None` (not wanted) per label.

    Returns:
        (start, end exclusive, label, score) in text order.
    """
    candidates = []
    for i in range(length):
        for j in range(i, min(length, i + window + 1)):
            above = []
            for label, threshold in enumerate(thresholds):
                if triangles == "upper":
                    one = other = logits[i][j - i][label]
                else:
                    one, other = logits[i][j - i + window][label], logits[j][i - j + window][label]
                if triangle_mean == "logit":
                    score = sigmoid((one + other) / 2)
                else:
                    score = (sigmoid(one) + sigmoid(other)) / 2
                if threshold is not None and score >= threshold:
                    above.append((i, j + 1, label, score))
            candidates += above
    return choose(candidates, labels_per_span, allow_nested)


def choose(candidates, labels_per_span, allow_nested):
    """The accepted (start, end exclusive, label, score), in text order; each span and label is given once."""
    if labels_per_span == "best":
        spans = {candidate[:2] for candidate in candidates}
        candidates = [min((c for c in candidates if c[:2] == span), key=lambda c: (-c[3], c[2])) for span in spans]
    accepted = []
    for candidate in sorted(candidates, key=lambda c: (-c[3], *c[:3])):
        if not any(_conflict(candidate, other, allow_nested) for other in accepted):
            accepted.append(candidate)
    return sorted(accepted)


def _conflict(one, other, allow_nested) -> bool:
    (s, e), (t, f) = one[:2], other[:2]
    if (s, e) == (t, f):
        return False
    if allow_nested:
        return s < t < e < f or t < s < f < e
    return s < f and t < e
