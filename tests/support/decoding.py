"""Decode logits to accepted spans in one call."""

from modeling_sener.decoding import Candidates, logit_candidates, select_all


def decode(
    logits, lengths, thresholds, triangles, triangle_mean, labels_per_span, allow_nested, **how
) -> list[Candidates]:
    """The accepted spans of each text of a batch. `how`: further arguments of `logit_candidates`."""
    candidates = logit_candidates(logits, lengths, thresholds, triangles, triangle_mean, **how)
    return select_all(candidates, len(logits), labels_per_span, allow_nested)
