"""
Count the floating-point operations of a forward pass, from the sizes: matrix products and convolutions only.

Only necessary work is counted: the pairs inside the windows, not the corners of the blocks that are computed.
`torch.utils.flop_counter` counts whole blocks. Given the sizes of blocks in place of windows, the formulas here give
its numbers (tests/benchmarks/test_benchmarks.py).
"""

from modeling_sener import SenerConfig
from modeling_sener.band import columns_before


def needed(config: SenerConfig, tokens: int) -> int:
    """FLOPs of one text of `tokens` tokens; each but the first and the last is a word."""
    words = tokens - 2
    attended = tokens if config.attention == "full" else 2 * config.attention_window + 2
    columns = width(config, words)
    return encoder(config.backbone_config, tokens, attended, attended) + head(config, words, words, columns)


def width(config: SenerConfig, words: int) -> int:
    """W, the columns of the band."""
    window = words - 1 if config.span_window is None else config.span_window
    return columns_before(window, config.triangles) + window + 1


def encoder(backbone, tokens: int, attended: int, positions: int) -> int:
    """
    FLOPs of the encoder.

    Args:
        backbone: a DeBERTa configuration with both position terms, or a BERT.
        attended: the number of keys per query.
        positions: the number of relative positions per query, before the size of their table limits it. A BERT has
            none and ignores it.
    """
    size = backbone.hidden_size
    linear = 4 * size * size + 2 * size * backbone.intermediate_size
    attention = 2 * attended * size
    position_scores = position_tables = 0
    if getattr(backbone, "relative_attention", False):
        entries = 2 * backbone.position_buckets
        position_scores = 2 * min(positions, entries) * size
        position_tables = 2 * entries * size * size
    return 2 * backbone.num_hidden_layers * (tokens * (linear + attention + position_scores) + position_tables)


def head(config: SenerConfig, words: int, ends: int, scored: int) -> int:
    """
    FLOPs after the encoder.

    Args:
        ends: the number of end vectors that are multiplied with the biaffine weights.
        scored: the number of words that each word is paired with in the biaffine scores.
    """
    size, p, channels = config.backbone_config.hidden_size, config.biaffine_size + 1, config.span_channels
    columns = width(config, words)
    vectors = 2 * size * config.biaffine_size
    products = ends * (p * p * channels + p * channels)
    linear = p * channels
    projections = columns * (2 * 3 * channels * channels + 2 * channels * channels)
    attention = 2 * 2 * columns * columns * channels
    convolutions = columns * 2 * 9 * channels * channels
    block = {"bispa": projections + attention + convolutions, "cnn": convolutions, "none": 0}
    blocks = config.span_layers * block[config.span_interaction]
    classifier = columns * channels * config.num_labels
    return 2 * (products + words * (vectors + linear + scored * p * channels + blocks + classifier))
