"""The benchmarks' arithmetic: counted work, the search for the longest text, targets, memory and texts."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import flops
from benchmarks.longest import TRIALS, extrapolated, longest
from benchmarks.points import GROUPS, MODELS, Point, plan
from benchmarks.targets import TARGETS
from benchmarks.text import BACKBONE, LABELS, make_tokenizer, make_words
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from modeling_sener import SenerConfig, SenerModel, SenerProcessor


SMALL = {**BACKBONE, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
         "position_buckets": 16}  # fmt: skip
BLOCK = 64  # rows that are computed together, beside the columns that any of them reaches
PIECES = 16 * BLOCK + 2


def config(**fields):
    return SenerConfig(SMALL, id2label=dict(enumerate(LABELS)), biaffine_size=20, span_channels=8, **fields)


def counted(config, pieces):
    """By torch, which is told of the CPU's attention kernel."""
    torch.manual_seed(0)
    model = SenerModel(config).eval()
    inputs = SenerProcessor(make_tokenizer(), config)(" ".join(make_words(pieces - 2)))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def kernel_flops(query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value)

    with FlopCounterMode(display=False, custom_mapping={kernel: kernel_flops}) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("interaction", ["bispa", "cnn", "none"])
def test_flops_of_the_square(interaction):
    square = config(attention="full", span_window=None, span_interaction=interaction)
    pieces, table = 130, 2 * square.backbone_config.position_buckets
    # Full attention looks its position terms up in a product with the whole table.
    expected = flops.encoder(square.backbone_config, pieces, pieces, table)
    expected += flops.head(square, pieces - 2, pieces - 2, pieces - 2)
    assert counted(square, pieces) == expected


@pytest.mark.parametrize("fields", [{}, {"span_window": 8}, {"span_interaction": "cnn"}, {"span_layers": 1}], ids=str)
def test_flops_of_the_band(fields):
    band = config(**{"span_window": 32, "attention_window": 16, **fields})
    span, window = band.span_window, band.attention_window
    in_blocks = flops.encoder(band.backbone_config, PIECES, 2 * window + BLOCK + 1, 2 * window + 2)
    in_blocks += flops.head(band, PIECES - 2, 2 * span + BLOCK, 2 * span + 1)
    measured = counted(band, PIECES)
    assert measured == pytest.approx(in_blocks, rel=0.03)  # halos, and a last block of two pieces
    assert 0.75 * measured < flops.needed(band, PIECES) < measured


@settings(deadline=None)
@given(
    linear=st.floats(1e2, 1e5),
    square=st.floats(0, 100),
    constant=st.integers(0, 10**8),
    suffices=st.none() | st.integers(1000, 10**6),
)
def test_longest_text_within_a_limit(linear, square, constant, suffices):
    limit = 10**9

    def added(length):
        return int(constant + linear * length + square * length * length)

    def measure(length):
        return None if suffices is not None and length > suffices else added(length)

    def within(length):
        found = measure(length)
        return found is not None and found <= limit

    words, trials = longest(measure, limit, start=64)
    assert [found for _, found in trials] == [measure(length) for length, _ in trials]
    assert within(words)
    if len(trials) < TRIALS:
        assert not within(math.ceil(words * 1.06) + 1)


def test_nothing_fits():
    words, trials = longest(lambda length: 100, limit=10, start=64)
    assert words == 0 and len(trials) <= TRIALS


def test_extrapolated():
    assert extrapolated((10, 100), (20, 200), 1000, cap=10**6) == 100
    assert extrapolated((10, 100), (20, 200), 1000, cap=50) == 50
    assert extrapolated((10, 100), (20, 90), 1000, cap=50) == 50


def results(seconds=1.0, added=10**8):
    """Every point of a full run and GLiNER's, all with the same figures."""
    points = [point for group in GROUPS for point in plan(group, quick=False)]
    points += [Point("gliner", length, "GLiNER", batch_size=size) for length in (4096, 16384) for size in (1, 8)]
    result = {"seconds": seconds, "added_bytes": added, "product_flops_per_second": 1e12, "flops": 5 * 10**11}
    return {point: dict(result) for point in points}


def test_every_target_is_measured_by_a_full_run():
    rows = [target.row(results()) for target in TARGETS]
    assert all(isinstance(row["met"], bool) for row in rows)
    json.dumps(rows)


def test_targets_without_a_measurement():
    assert all(target.row({})["measured"] is None and target.row({})["met"] is None for target in TARGETS)
    failed = {point: {"error": "out of memory"} for point in results()}
    assert all(target.row(failed)["met"] is None for target in TARGETS)


def test_targets_say_what_they_measure():
    found = results()
    by_what = {}
    for point, result in found.items():
        by_what.setdefault((point.what, point.length, point.model, point.precision, point.checkpointing), result)
    by_what["forward", 4096, "SeNER", "float32", False].update(seconds=5.7, added_bytes=600_000_000)
    by_what["forward", 4096, "SeNER", "bfloat16", False].update(seconds=2.85)
    by_what["training", 2048, "SeNER", "float32", True].update(seconds=25.0, added_bytes=1_000_000_000)
    by_what["entities", 16384, "SeNER", "float32", False].update(seconds=4.0)
    by_what["entities", 65536, "SeNER", "float32", False].update(seconds=32.0, added_bytes=10**8 + 49152 * 5000)
    for point, result in found.items():
        if point.what == "gliner":
            result["seconds"] = 6.0 if point.batch_size == 1 else 2.0
    rows = [target.row(found) for target in TARGETS]
    values = [round(row["measured"], 6) for row in rows]
    assert values == [10, 0.6, 2, round(5e11 / 5.7 / 1e10, 6), 75, 0.1, 3, 1, 2, 5, 2, 0.5, 2, 2]
    assert [row["met"] for row in rows] == [
        True, False, True, False, True, True, False, True, False, True, True, False, True, True
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 7, 500])
def test_a_piece_a_word(length):
    inputs = SenerProcessor(make_tokenizer(), config())(" ".join(make_words(length)))
    assert inputs["input_ids"].shape == (1, length + 2)
    assert inputs["word_index"][0].tolist() == [0, *range(1, length + 1), 0]
    assert (inputs["input_ids"] != make_tokenizer().unk_token_id).all()


def test_models_are_valid_configurations():
    for fields in MODELS.values():
        config(**fields)


def test_peak_memory_is_what_was_added():
    code = """
import torch
from benchmarks.measure import PeakMemory
memory = PeakMemory(torch.device("cpu"))
torch.ones(75_000_000); torch.ones(50_000_000)  # freed at once: the larger one is the peak
print(memory.added())
"""
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert 2.9e8 < int(done.stdout) < 3.6e8
