"""Biaffine band and BiSPA blocks against the dense square: outputs and every gradient, whole and in chunks."""

import pytest
import torch
from support import references
from support.tiny_models import assert_close, randomize

from modeling_sener.arrow_attention import BLOCK
from modeling_sener.band import Band
from modeling_sener.bispa import BiaffineBand, BiSPABlock, apply_rotary
from modeling_sener.row_executors import ChunkByChunk, WholeText, with_halo


w, C, p, d = 4, 6, 5, 7
W = 2 * w + 1
TEXTS = [[1], [w], [w + 1], [2 * w - 1], [2 * w], [2 * w + 1], [23], [2 * w + 3, 1, w + 1], [19, 19], [5, 30, 2 * w]]
LONG = [[BLOCK - 1], [BLOCK + 1], [2 * BLOCK + w, 3]]
BLOCKS = [
    ("bispa", "mirrored", "both"), ("bispa", "transposed", "both"), ("bispa", "transposed", "upper"),
    ("cnn", "mirrored", "both"), ("cnn", "mirrored", "upper"),
]  # fmt: skip
TRIANGLES = ["both", "upper"]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def block(kind):
    interaction, readout, triangles = kind
    module = BiSPABlock(C, 0.0, interaction == "bispa", readout == "mirrored", triangles == "both")
    return randomize(module.double())


def dense_block(kind, state, square):
    interaction, readout, triangles = kind
    state = {f"blocks.0.{name}": tensor for name, tensor in state.items()}
    if interaction == "cnn":
        return references.convolution_block(state, "blocks.0", square, w, triangles)
    return references.bispa_block(state, "blocks.0", square, w, readout, triangles)


def dense_band(kind, state, cells, lengths):
    """Compute the block for each text on the square. The results are put back into a band, and padded."""
    bands, triangles = [], kind[-1]
    for text, length in zip(cells, lengths, strict=True):
        square = dense_block(kind, state, references.band_to_square(text[:length], w, triangles))
        band = references.square_to_band(square, w, triangles)
        bands.append(torch.nn.functional.pad(band, (0, 0, 0, 0, 0, cells.shape[1] - length)))
    return torch.stack(bands)


def case(kind, lengths, device):
    """A block, the band of texts, which of its cells are valid (B, N, W, 1), and the shape of cells."""
    band = Band.of(torch.tensor(lengths, device=device), w, kind[-1])
    valid = references.valid_band(lengths, max(lengths), w, kind[-1])[..., None]
    return block(kind).to(device), band, valid, (len(lengths), max(lengths), band.width, C)


def parameters(module):
    """Copies of the module's parameters, on the CPU."""
    return {name: tensor.detach().cpu().clone().requires_grad_() for name, tensor in module.named_parameters()}


def assert_same_gradients(module, state):
    for name, parameter in module.named_parameters():
        assert_close(
            parameter.grad, state[name].grad, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"d {name}: {text}"
        )


@pytest.mark.parametrize("lengths", TEXTS, ids=str)
@pytest.mark.parametrize("kind", BLOCKS, ids="-".join)
def test_block_equals_dense(device, kind, lengths):
    module, band, valid, shape = case(kind, lengths, device)
    state = parameters(module)
    cells, weight = random(*shape) * valid, random(*shape, seed=1) * valid
    inputs = [cells.to(device, copy=True).requires_grad_(), cells.clone().requires_grad_()]
    ours, expected = module(inputs[0], band, WholeText(7)).cpu(), dense_band(kind, state, inputs[1], lengths)
    assert_close(ours * valid, expected * valid, atol=1e-6, rtol=0)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_close(inputs[0].grad.cpu() * valid, inputs[1].grad * valid, atol=1e-5, rtol=1e-5)
    assert_same_gradients(module, state)


@pytest.mark.parametrize("kind", BLOCKS, ids="-".join)
def test_values_of_invalid_cells_never_reach_valid_ones(device, kind):
    module, band, valid, shape = case(kind, [2 * w + 3, 1, w + 1], device)
    valid, cells, run = valid.to(device), random(*shape).to(device), WholeText(5)
    clean = (cells * valid).requires_grad_()
    dirty = torch.where(valid, cells, 30.0).requires_grad_()
    assert_close(module(clean, band, run) * valid, module(dirty, band, run) * valid, atol=1e-12, rtol=0)
    (module(dirty, band, run) * valid).sum().backward()
    assert not (dirty.grad * ~valid).any()


@pytest.mark.parametrize("size", [1, 2, 5, w, 11, 40])
@pytest.mark.parametrize("kind", BLOCKS, ids="-".join)
def test_block_chunk_by_chunk_equals_the_whole(device, kind, size):
    module, band, valid, shape = case(kind, [30, 17], device)
    valid, cells = valid.to(device), random(*shape).to(device)
    with torch.no_grad():
        whole = module(cells.clone(), band, WholeText(40))
        joined = torch.cat(list(module(iter(cells.split(size, dim=1)), band, ChunkByChunk(30))), dim=1)
    assert_close(joined * valid, whole * valid, atol=1e-12, rtol=0)


def biaffine_case(lengths, device):
    N = max(lengths)
    module = randomize(BiaffineBand(d, p, C, 0.0).double())
    state = {f"biaffine.{name}": tensor for name, tensor in parameters(module).items()}
    words = random(len(lengths), N, d) * (torch.arange(N) < torch.tensor(lengths)[:, None])[..., None]
    return module.to(device), state, [words.to(device, copy=True).requires_grad_(), words.clone().requires_grad_()]


def rows_of(module, words, lengths, rows, triangles="both"):
    starts, ends = module(words)
    lengths = torch.tensor(lengths, device=words.device)
    band = Band.of(lengths, w, triangles)
    real = (torch.arange(words.shape[1], device=words.device) < lengths[:, None])[..., None]
    ends = torch.nn.functional.pad(ends * real, (0, 0, band.before, w))
    haloed = ends[:, rows.start : rows.stop + band.width - 1]
    return module.score_rows(starts[:, rows.start : rows.stop], haloed, rows, band)


@pytest.mark.parametrize("triangles", TRIANGLES)
@pytest.mark.parametrize("lengths", TEXTS + LONG, ids=str)
def test_biaffine_band_equals_dense(device, lengths, triangles):
    module, state, (ours_in, dense_in) = biaffine_case(lengths, device)
    N = max(lengths)
    ours = rows_of(module, ours_in, lengths, range(N), triangles)
    bands = [
        references.square_to_band(references.biaffine_square(state, words[:n]), w, triangles)
        for words, n in zip(dense_in, lengths, strict=True)
    ]
    expected = torch.stack([torch.nn.functional.pad(x, (0, 0, 0, 0, 0, N - len(x))) for x in bands])
    assert_close(ours, expected, atol=1e-10, rtol=0)
    weight = random(*ours.shape, seed=1)
    (ours * weight.to(device)).sum().backward()
    (expected * weight).sum().backward()
    assert_close(ours_in.grad, dense_in.grad, atol=1e-10, rtol=1e-9)
    assert_same_gradients(module, {name.removeprefix("biaffine."): tensor for name, tensor in state.items()})


def test_biaffine_rows_of_a_chunk_are_those_of_the_whole(device):
    lengths = [90, 31]
    module, _, (words, _) = biaffine_case(lengths, device)
    whole = rows_of(module, words, lengths, range(90))
    assert_close(rows_of(module, words, lengths, range(13, 81)), whole[:, 13:81], atol=1e-12, rtol=0)


def test_queries_and_keys_are_rotated_and_values_are_not(device):
    q, k, v = random(3, 2, 3, W, C)
    positions = torch.arange(W)
    turned = [references.rotate(x, positions.expand(2, 3, W)) for x in (q, k)]
    ours = apply_rotary(torch.cat([q, k, v], -1).to(device), positions.to(device))
    assert_close(ours, torch.cat([*turned, v], -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("halo", [(0, 0), (1, 1), (3, 0), (0, 2), (2, 5)], ids=str)
@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [2, 9, 1], [11, 1]], ids=str)
def test_chunks_get_their_halo(sizes, halo):
    rows, seen = random(2, 12, 3), []
    before, after = halo
    padded = torch.nn.functional.pad(rows, (0, 0, before, after))
    for held, place in with_halo(rows.split(sizes, dim=1), halo, 12):
        assert torch.equal(held, padded[:, place.start : place.stop + before + after])
        assert place.stop - place.start <= max(sizes)
        seen.extend(range(place.start, place.stop))
    assert seen == list(range(12))
