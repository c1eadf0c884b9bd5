"""The benchmarks' arithmetic: counted work, the search for the longest text, targets, memory and texts."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import flops, machine
from benchmarks.longest import TRIALS, extrapolated, longest
from benchmarks.points import ACCELERATOR, BOTH, GROUPS, MODELS, PEERS, SQUARES, UPPER, Point, model_name, plan
from benchmarks.report import machine_line, points_table, targets_table
from benchmarks.targets import BOTH_FORWARD, BOTH_TRAINING, TARGETS
from benchmarks.text import BACKBONES, LABELS, make_tokenizer, make_words
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from modeling_sener import SenerConfig, SenerModel, SenerProcessor


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
BLOCK = 64  # queries or rows of a block; the block has a key or an end for each that any of them needs
TOKENS = 16 * BLOCK + 2


def config(encoder="DeBERTa", **fields):
    small = {**BACKBONES[encoder], **SMALL, **({"position_buckets": 16} if encoder == "DeBERTa" else {})}
    return SenerConfig(small, id2label=dict(enumerate(LABELS)), biaffine_size=20, span_channels=8, **fields)


def counted(config, tokens):
    """FLOPs by torch's counter, which needs a formula for the CPU's attention kernel."""
    torch.manual_seed(0)
    model = SenerModel(config).eval()
    inputs = SenerProcessor(make_tokenizer(), config)(" ".join(make_words(tokens - 2)))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def kernel_flops(query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value)

    with FlopCounterMode(display=False, custom_mapping={kernel: kernel_flops}) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("triangles", ["both", "upper"])
@pytest.mark.parametrize("interaction", ["bispa", "cnn", "none"])
@pytest.mark.parametrize("encoder", BACKBONES)
def test_flops_of_the_square_are_torchs(encoder, interaction, triangles):
    square = config(encoder, attention="full", span_window=None, span_interaction=interaction, triangles=triangles)
    tokens, words = 2 * BLOCK + 2, 2 * BLOCK
    halo = flops.width(square, words) - 1
    # Full attention multiplies with the whole table of positions, which is shorter than this text.
    in_one_chunk = flops.encoder(square.backbone_config, tokens, tokens, tokens)
    in_one_chunk += flops.head(square, words, words + halo, BLOCK + halo)
    measured = counted(square, tokens)
    assert measured == pytest.approx(in_one_chunk, rel=0.02)  # the rest is the halo of convolutions
    assert flops.needed(square, tokens) < measured


@pytest.mark.parametrize("encoder", BACKBONES)
@pytest.mark.parametrize(
    "fields",
    [{}, {"span_window": 8}, {"span_interaction": "cnn"}, {"span_layers": 1}, {"triangles": "upper"},
     {"triangles": "upper", "span_window": 8}],
    ids=str,
)  # fmt: skip
def test_flops_of_the_band_are_torchs(encoder, fields):
    band = config(encoder, **{"span_window": 32, "attention_window": 16, **fields})
    window, words = band.attention_window, TOKENS - 2
    in_blocks = flops.encoder(band.backbone_config, TOKENS, 2 * window + BLOCK + 1, 2 * window + 2)
    in_blocks += flops.head(band, words, words, flops.width(band, words) - 1 + BLOCK)
    measured = counted(band, TOKENS)
    assert measured == pytest.approx(in_blocks, rel=0.03)  # the rest is halos, and a last block of two tokens
    assert 0.7 * measured < flops.needed(band, TOKENS) < measured


def test_half_the_band_needs_half_the_work_after_the_encoder():
    """
    Half in a long text: attention along rows and columns has half the queries and half the keys, all other steps have
    half the cells.
    """
    both, upper = (config(span_window=128, triangles=triangles) for triangles in ("both", "upper"))
    encoder = flops.encoder(both.backbone_config, TOKENS, 258, 258)
    heads = [flops.needed(each, TOKENS) - encoder for each in (both, upper)]
    attention = [4 * 2 * 2 * (TOKENS - 2) * columns**2 * 8 for columns in (257, 129)]
    assert attention[1] / attention[0] == pytest.approx(1 / 4, rel=0.01)
    rest = [head - own for head, own in zip(heads, attention, strict=True)]
    assert 0.5 < rest[1] / rest[0] < 0.75


@settings(deadline=None)
@given(
    linear=st.floats(1e2, 1e5),
    square=st.floats(0, 100),
    constant=st.integers(0, 10**8),
    suffices=st.none() | st.integers(1000, 10**6),
)
def test_the_search_finds_the_longest_text_within_the_limit(linear, square, constant, suffices):
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


def test_the_search_ends_if_no_text_fits():
    words, trials = longest(lambda length: 100, limit=10, start=64)
    assert words == 0 and len(trials) <= TRIALS


def test_the_extrapolation_is_a_line_up_to_the_cap():
    assert extrapolated((10, 100), (20, 200), 1000, cap=10**6) == 100
    assert extrapolated((10, 100), (20, 200), 1000, cap=50) == 50
    assert extrapolated((10, 100), (20, 90), 1000, cap=50) == 50


def results(seconds=1.0, added=10**8):
    """Results of a full run and the peers, with equal values for all points."""
    points = [point for group in GROUPS for point in plan(group, quick=False)]
    points += [Point("peer", length, peer, batch_size=size)
               for peer in PEERS for length in (4096, 16384) for size in (1, 8)]  # fmt: skip
    result = {"seconds": seconds, "added_bytes": added, "product_flops_per_second": 1e12, "flops": 5 * 10**11,
              "runs": 1, "threads": 2}  # fmt: skip
    return {point: dict(result) for point in points}


def test_every_target_is_measured_by_a_full_run():
    rows = [target.row(results()) for target in TARGETS]
    assert all(row["measured"] is not None for row in rows)
    assert all((row["met"] is None) == (row["bound"] is None) for row in rows)
    json.dumps(rows)


def test_targets_without_a_measurement_are_neither_met_nor_missed():
    assert all(target.row({})["measured"] is None and target.row({})["met"] is None for target in TARGETS)
    failed = {point: {"error": "out of memory"} for point in results()}
    assert all(target.row(failed)["met"] is None for target in TARGETS)


def test_targets_compute_their_ratios():
    found = results()

    def change(what, length, model, precision="float32", checkpointing=False, **values):
        same = [point for point in found if replace(point, bias=0.0) == Point(what, length, model, precision,
                                                                              checkpointing)]  # fmt: skip
        (point,) = same
        found[point].update(values)

    change("forward", 4096, UPPER, seconds=5.0)
    change("forward", 4096, BOTH, seconds=7.5, added_bytes=600_000_000)
    change("forward", 4096, BOTH, precision="bfloat16", seconds=5.0)
    change("training", 2048, UPPER, seconds=10.0)
    change("training", 2048, BOTH, seconds=15.0)
    change("training", 2048, BOTH, checkpointing=True, seconds=25.0, added_bytes=1_000_000_000)
    change("entities", 4096, model_name("both", encoder="MiniLM"), seconds=3.0)
    change("entities", 4096, UPPER, seconds=1.6)
    change("entities", 4096, BOTH, seconds=4.0)
    change("entities", 16384, UPPER, seconds=4.0)
    change("entities", 65536, UPPER, seconds=32.0, added_bytes=10**8 + 49152 * 5000)
    for point, result in found.items():
        if point.what == "peer":
            result["seconds"] = 6.0 if point.batch_size == 1 else 2.0 + PEERS.index(point.model)
    rows = [target.row(found) for target in TARGETS]
    upper, both, rest = rows[:7], rows[7:17], rows[17:]
    assert [round(row["measured"], 6) for row in upper] == [
        11.4, round(1.5 * BOTH_FORWARD, 6), 7.5, round(1.5 * BOTH_TRAINING, 6), 1.25, 2, 3,
    ]  # fmt: skip
    assert [row["met"] for row in upper] == [True, True, True, True, True, False, True]
    share = round(5e11 / 7.5 / 1e10, 6)
    assert [round(row["measured"], 6) for row in both] == [7.6, 0.6, 1.5, share, 5, 0.1, 3, 1, 0.5, 2]
    assert [row["met"] for row in both] == [True, False, True, False, True, True, False, True, False, True]
    assert [round(row["measured"], 6) for row in rest] == [1.25, 5, 0.5, 2, 2, 2, 1.875, 3, 2.5, 4]
    assert [row["met"] for row in rest] == [False, True, False, True, True, True, None, None, None, None]


def test_the_targets_of_the_upper_triangle_are_those_that_were_set():
    """Bounds and aims were set before the measurements."""
    bounds = [(target.bound, target.aim) for target in TARGETS[:7]]
    assert bounds == [(9.5, 12), (9.5, 12), (7, 9), (7, 9), (1.25, 1.6), (2.1, 2.6), (2, 3)]


def test_tables_show_every_point_target_and_the_instruction_sets():
    found = results()
    table = points_table(found)
    assert all(f"| {point} " in table for point in found)
    rows = targets_table([target.row(found) for target in TARGETS]).splitlines()
    assert len(rows) == 2 + len(TARGETS)
    assert "at least 9.5 x faster | 12 x faster | 57 x faster" in " ".join(rows[2].split())
    described = machine.machine(found)
    assert described["instruction_sets"][0] == f"torch {torch.backends.cpu.get_cpu_capability()}"
    assert ", ".join(described["instruction_sets"]) in machine_line(described)


def test_instruction_sets_are_read_from_the_processors_flags(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f amx_bf16_of_another avx512_bf16\n" * 2)
    monkeypatch.setattr(machine, "PROCESSOR", file)
    assert machine.processor() == "Some CPU"
    assert machine.instruction_sets()[1:] == ["avx2", "avx512f", "avx512_bf16"]
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "none")
    assert machine.processor() and len(machine.instruction_sets()) == 1


@pytest.mark.parametrize("group", [*GROUPS, ACCELERATOR])
@pytest.mark.parametrize("quick", [False, True])
def test_no_point_is_planned_twice(group, quick):
    points = plan(group, quick)
    assert len(set(points)) == len(points)
    assert all(point.model in MODELS for point in points)


@pytest.mark.parametrize("length", [1, 7, 500])
def test_texts_have_one_token_per_word(length):
    inputs = SenerProcessor(make_tokenizer(), config())(" ".join(make_words(length)))
    assert inputs["input_ids"].shape == (1, length + 2)
    assert inputs["word_index"][0].tolist() == [0, *range(1, length + 1), 0]
    assert (inputs["input_ids"] != make_tokenizer().unk_token_id).all()


def test_models_are_valid_configurations():
    for fields in MODELS.values():
        config(**fields)
    assert all(MODELS[name]["triangles"] == "upper" and MODELS[name]["span_window"] is None for name in SQUARES)


def test_peak_memory_is_that_of_the_largest_tensor():
    code = """
import torch
from benchmarks.measure import PeakMemory
memory = PeakMemory(torch.device("cpu"))
torch.ones(75_000_000); torch.ones(50_000_000)  # freed at once: the larger one is the peak
print(memory.added())
"""
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert 2.9e8 < int(done.stdout) < 3.6e8
