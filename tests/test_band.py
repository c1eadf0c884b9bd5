"""Band functions against cell-by-cell loops."""

import pytest
import references
import torch

from modeling_sener.band import band_labels, band_mask, band_to_square, fits, pad_rows, square_to_band, transpose


w = 4
LENGTHS = [1, w, w + 1, 2 * w - 1, 2 * w, 2 * w + 1, 23]


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def gradient(function, x, weight):
    x = x.clone().requires_grad_()
    (function(x) * weight).sum().backward()
    return x.grad


@pytest.mark.parametrize("N", LENGTHS)
def test_square_to_band_and_back(N):
    square = random(2, N, N, 3)
    band = square_to_band(square, w)
    expected = torch.stack([references.square_to_band(text, w) for text in square])
    assert torch.equal(band, expected)
    back = band_to_square(band, w)
    assert torch.equal(back, torch.stack([references.band_to_square(text) for text in band]))
    assert torch.equal(back, square * references.valid_square(N, w)[None, :, :, None])


@pytest.mark.parametrize("N", LENGTHS)
def test_square_and_band_gradients(N):
    square, weight = random(2, N, N, 3), random(2, N, 2 * w + 1, 3)
    expected = gradient(lambda x: torch.stack([references.square_to_band(text, w) for text in x]), square, weight)
    assert torch.equal(gradient(lambda x: square_to_band(x, w), square, weight), expected)
    expected = gradient(lambda x: torch.stack([references.band_to_square(text) for text in x]), weight, square)
    assert torch.equal(gradient(lambda x: band_to_square(x, w), weight, square), expected)


@pytest.mark.parametrize("N", LENGTHS)
def test_transpose(N):
    band = random(2, N, 2 * w + 1, 3)
    moved = transpose(pad_rows(band, w, w), w)
    assert torch.equal(moved, torch.stack([references.transpose_band(text) for text in band]))
    weight = random(2, N, 2 * w + 1, 3) + 1
    expected = gradient(lambda x: torch.stack([references.transpose_band(text) for text in x]), band, weight)
    assert torch.equal(gradient(lambda x: transpose(pad_rows(x, w, w), w), band, weight), expected)
    valid = references.valid_band([N, N], N, w)[..., None]
    assert torch.equal(transpose(pad_rows(moved, w, w), w) * valid, band * valid), "its own inverse"


def test_transpose_of_a_part_is_a_part_of_the_transpose():
    band = random(1, 23, 2 * w + 1, 2)
    whole = transpose(pad_rows(band, w, w), w)
    assert torch.equal(transpose(band[:, 6 - w : 11 + w], w), whole[:, 6:11])


def test_transpose_is_a_view():
    band = random(1, 20, 2 * w + 1, 2)
    assert transpose(band, w).untyped_storage().data_ptr() == band.untyped_storage().data_ptr()


def test_band_mask():
    counts = torch.tensor([11, 1, 5])
    expected = references.valid_band(counts, 11, w)
    assert torch.equal(band_mask(counts, range(11), w), expected)
    beyond = band_mask(counts, range(-3, 14), w)
    assert torch.equal(beyond[:, 3:14], expected)
    assert not beyond[:, :3].any() and not beyond[:, 14:].any()


def test_labels_fill_both_triangles():
    spans = [(0, 1, 0), (0, 1, 2), (2, 5, 1), (3, 5, 1), (2, 2 + w + 1, 0)]
    assert torch.equal(band_labels(spans, 9, w, 3), references.band_labels(spans, 9, w, 3))
    band = band_labels(spans, 9, w, 3)
    assert band.dtype == torch.uint8 and band.sum() == 2 * len(spans) - 2
    square = band_labels(spans, 9, None, 3)
    assert torch.equal(square, references.band_to_square(band))
    assert torch.equal(square, square.transpose(0, 1))


@pytest.mark.parametrize("span", [(3, 3, 0), (4, 3, 0), (-1, 1, 0), (8, 10, 0), (0, w + 2, 0)])
def test_a_span_that_does_not_fit_is_refused(span):
    with pytest.raises(ValueError, match=rf"{span[0]}, {span[1]}"):
        band_labels([span], 9, w, 1)


def test_fits():
    assert fits(3, 3 + w + 1, w) and not fits(3, 3 + w + 2, w)
    assert fits(0, 10_000, None)
