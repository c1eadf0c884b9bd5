"""Biaffine band and span blocks against the dense square, outputs and every gradient, whole and in parts."""

import pytest
import references
import torch
from tiny_models import randomize

from modeling_sener.arrow_attention import BLOCK
from modeling_sener.bispa import BiaffineBand, SpanBlock, rotate, stream


w, C, p, d = 4, 6, 5, 7
W = 2 * w + 1
TEXTS = [[1], [w], [w + 1], [2 * w - 1], [2 * w], [2 * w + 1], [23], [2 * w + 3, 1, w + 1], [19, 19], [5, 30, 2 * w]]
LONG = [[BLOCK - 1], [BLOCK + 1], [2 * BLOCK + w, 3]]
BLOCKS = ["mirrored", "transposed", "cnn"]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def block(kind, window=w):
    plus_shaped = kind != "cnn"
    return randomize(SpanBlock(C, window, 0.0, plus_shaped, kind == "mirrored").double())


def dense_block(kind, state, square, window):
    state = {f"blocks.0.{name}": tensor for name, tensor in state.items()}
    if kind == "cnn":
        return references.convolution_block(state, "blocks.0", square, window)
    return references.bispa_block(state, "blocks.0", square, window, kind)


def dense_band(kind, state, cells, lengths):
    """The block text by text on the square, back in the band and padded."""
    bands = []
    for text, length in zip(cells, lengths, strict=True):
        square = dense_block(kind, state, references.band_to_square(text[:length]), w)
        band = references.square_to_band(square, w)
        bands.append(torch.nn.functional.pad(band, (0, 0, 0, 0, 0, cells.shape[1] - length)))
    return torch.stack(bands)


def parameters(module):
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in module.named_parameters()}


def assert_same_gradients(module, state):
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(
            parameter.grad, state[name].grad, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"d {name}: {text}"
        )


@pytest.mark.parametrize("lengths", TEXTS, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_equals_dense(kind, lengths):
    N, counts = max(lengths), torch.tensor(lengths)
    module = block(kind)
    state = parameters(module)
    valid = references.valid_band(lengths, N, w)[..., None]
    cells, weight = random(len(lengths), N, W, C) * valid, random(len(lengths), N, W, C, seed=1) * valid
    inputs = [cells.clone().requires_grad_() for _ in range(2)]
    ours, expected = module(inputs[0], counts), dense_band(kind, state, inputs[1], lengths)
    torch.testing.assert_close(ours * valid, expected * valid, atol=1e-6, rtol=0)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad * valid, inputs[1].grad * valid, atol=1e-5, rtol=1e-5)
    assert_same_gradients(module, state)


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_an_invalid_cell_holds_never_reaches_a_valid_one(kind):
    lengths = [2 * w + 3, 1, w + 1]
    N, counts = max(lengths), torch.tensor(lengths)
    module = block(kind)
    valid = references.valid_band(lengths, N, w)[..., None]
    cells = random(len(lengths), N, W, C)
    clean = (cells * valid).requires_grad_()
    dirty = torch.where(valid, cells, 30.0).requires_grad_()
    torch.testing.assert_close(module(clean, counts) * valid, module(dirty, counts) * valid, atol=1e-12, rtol=0)
    (module(dirty, counts) * valid).sum().backward()
    assert not (dirty.grad * ~valid).any()


@pytest.mark.parametrize("size", [1, 2, 5, w, 11, 40])
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_in_parts_equals_the_whole(kind, size):
    lengths = [30, 17]
    N, counts = max(lengths), torch.tensor(lengths)
    module = block(kind)
    valid = references.valid_band(lengths, N, w)[..., None]
    cells = random(len(lengths), N, W, C)
    made = list(module.stream([(part,) for part in cells.split(size, dim=1)], counts, N))
    assert all(len(part) == 1 for part in made)
    joined = torch.cat([part for (part,) in made], dim=1)
    torch.testing.assert_close(joined * valid, module(cells, counts) * valid, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lengths", [[1], [6], [9, 4]], ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_on_the_whole_square(kind, lengths):
    """With no window rows and columns are whole, and the convolutions go over the grid (i, j)."""
    N, counts = max(lengths), torch.tensor(lengths)
    module = block(kind, window=None)
    state = parameters(module)
    words = torch.arange(N) < counts[:, None]
    valid = (words[:, :, None] & words[:, None, :])[..., None]
    squares, weight = random(len(lengths), N, N, C), random(len(lengths), N, N, C, seed=1) * valid
    inputs = [squares.clone().requires_grad_() for _ in range(2)]
    expected = torch.stack([
        torch.nn.functional.pad(dense_block(kind, state, text[:n, :n], None), (0, 0, 0, N - n, 0, N - n))
        for text, n in zip(inputs[1], lengths, strict=True)
    ])  # fmt: skip
    ours = module(inputs[0], counts)
    torch.testing.assert_close(ours * valid, expected * valid, atol=1e-6, rtol=0)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-5)
    assert_same_gradients(module, state)


def biaffine_case(lengths):
    N = max(lengths)
    module = randomize(BiaffineBand(d, p, C, 0.0).double())
    state = {f"biaffine.{name}": tensor for name, tensor in parameters(module).items()}
    words = random(len(lengths), N, d) * (torch.arange(N) < torch.tensor(lengths)[:, None])[..., None]
    return module, state, [words.clone().requires_grad_() for _ in range(2)]


def rows_of(module, words, lengths, rows):
    starts, ends = module(words)
    real = (torch.arange(words.shape[1]) < torch.tensor(lengths)[:, None])[..., None]
    ends = torch.nn.functional.pad(ends * real, (0, 0, w, w))
    return module.rows(
        starts[:, rows.start : rows.stop], ends[:, rows.start : rows.stop + 2 * w], torch.tensor(lengths), rows, w
    )


@pytest.mark.parametrize("lengths", TEXTS + LONG, ids=str)
def test_biaffine_band_equals_dense(lengths):
    module, state, (ours_in, dense_in) = biaffine_case(lengths)
    N = max(lengths)
    ours = rows_of(module, ours_in, lengths, range(N))
    bands = [
        references.square_to_band(references.biaffine_square(state, words[:n]), w)
        for words, n in zip(dense_in, lengths, strict=True)
    ]
    expected = torch.stack([torch.nn.functional.pad(x, (0, 0, 0, 0, 0, N - len(x))) for x in bands])
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)
    weight = random(*ours.shape, seed=1)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours_in.grad, dense_in.grad, atol=1e-10, rtol=1e-9)
    assert_same_gradients(module, {name.removeprefix("biaffine."): tensor for name, tensor in state.items()})


def test_biaffine_rows_of_a_part():
    lengths = [90, 31]
    module, _, (words, _) = biaffine_case(lengths)
    whole = rows_of(module, words, lengths, range(90))
    torch.testing.assert_close(rows_of(module, words, lengths, range(13, 81)), whole[:, 13:81], atol=1e-12, rtol=0)


def test_biaffine_square():
    lengths = [9, 4]
    module, state, (words, _) = biaffine_case(lengths)
    square = module.square(*module(words), torch.tensor(lengths))
    for text, n, ours in zip(words, lengths, square, strict=True):
        torch.testing.assert_close(ours[:n, :n], references.biaffine_square(state, text[:n]), atol=1e-10, rtol=0)
        assert not ours[n:].any() and not ours[:, n:].any()


def test_rotation_of_queries_and_keys():
    q, k, v = random(3, 2, 3, W, C)
    positions = torch.arange(W)
    turned = [references.rotate(x, positions.expand(2, 3, W)) for x in (q, k)]
    ours = rotate(torch.cat([q, k, v], -1), positions)
    torch.testing.assert_close(ours, torch.cat([*turned, v], -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("halo", [0, 1, 3])
@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [2, 9, 1], [11, 1]], ids=str)
def test_stream_gives_each_step_its_halo(sizes, halo):
    rows = random(2, 12, 3)
    padded = torch.nn.functional.pad(rows, (0, 0, halo, halo))
    seen = []

    def step(held, rows):
        assert torch.equal(held, padded[:, rows.start : rows.stop + 2 * halo])
        seen.extend(range(rows.start, rows.stop))
        return (held,)

    list(stream([(part,) for part in rows.split(sizes, dim=1)], halo, step, 12))
    assert seen == list(range(12))
