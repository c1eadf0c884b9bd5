"""
Floating-point operations of a forward pass, counted from the sizes: matrix products and convolutions alone.

Only what is needed is counted: the pairs inside the windows, not the corners of the blocks that they are computed in.
`torch.utils.flop_counter` counts the blocks as well, and needs to be told of the CPU's attention kernel; with the
blocks' sizes in place of the windows' these formulas give its number (tests/test_benchmarks.py).
"""

from modeling_sener import SenerConfig
from modeling_sener.band import columns_before


def needed(config: SenerConfig, pieces: int) -> int:
    """Of one text of `pieces` pieces, one of them a word but for the first and the last."""
    words = pieces - 2
    attended = pieces if config.attention == "full" else 2 * config.attention_window + 2
    window = words - 1 if config.span_window is None else config.span_window
    columns = columns_before(window, config.triangles) + window + 1
    return encoder(config.backbone_config, pieces, attended, attended) + head(config, words, columns, columns)


def encoder(backbone, pieces: int, attended: int, positions: int) -> int:
    """
    Args:
        backbone: a DeBERTa configuration with both position terms.
        attended: keys that each query is scored with.
        positions: rows of each table of relative positions that it is scored with.
    """
    size = backbone.hidden_size
    linear = 4 * size * size + 2 * size * backbone.intermediate_size
    attention = 2 * attended * size
    position_scores = 2 * positions * size
    position_tables = 2 * 2 * backbone.position_buckets * size * size
    return 2 * backbone.num_hidden_layers * (pieces * (linear + attention + position_scores) + position_tables)


def head(config: SenerConfig, words: int, scored: int, columns: int) -> int:
    """
    Args:
        scored: words that each word is paired with in the biaffine scores.
        columns: cells of a row of the span tensor.
    """
    size, p, channels = config.backbone_config.hidden_size, config.biaffine_size + 1, config.span_channels
    vectors = 2 * size * config.biaffine_size
    biaffine = p * p * channels + 2 * p * channels + scored * p * channels
    projections = columns * (2 * 3 * channels * channels + 2 * channels * channels)
    attention = 2 * 2 * columns * columns * channels
    convolutions = columns * 2 * 9 * channels * channels
    block = {"bispa": projections + attention + convolutions, "cnn": convolutions, "none": 0}
    blocks = config.span_layers * block[config.span_interaction]
    classifier = columns * channels * config.num_labels
    return 2 * words * (vectors + biaffine + blocks + classifier)
