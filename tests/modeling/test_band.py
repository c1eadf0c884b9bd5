"""Functions of the band against loops over its cells."""

import pytest
import torch
from support import references

from modeling_sener.band import Band, band_labels, columns_before, fits, pad_rows, transpose


w = 4
TRIANGLES = ["both", "upper"]
LENGTHS = [1, w, w + 1, 2 * w - 1, 2 * w, 2 * w + 1, 23]


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def gradient(function, x, weight):
    x = x.clone().requires_grad_()
    (function(x) * weight).sum().backward()
    return x.grad


def width(triangles):
    return columns_before(w, triangles) + w + 1


@pytest.mark.parametrize("triangles", TRIANGLES)
@pytest.mark.parametrize("N", LENGTHS)
def test_transpose_equals_its_definition(N, triangles):
    b = columns_before(w, triangles)
    band = random(2, N, width(triangles), 3)
    moved = transpose(pad_rows(band, w, b))
    assert torch.equal(moved, torch.stack([references.transpose_band(text, w) for text in band]))
    weight = random(2, N, width(triangles), 3) + 1
    expected = gradient(lambda x: torch.stack([references.transpose_band(text, w) for text in x]), band, weight)
    assert torch.equal(gradient(lambda x: transpose(pad_rows(x, w, b)), band, weight), expected)
    valid = references.valid_band([N, N], N, w, triangles)[..., None]
    assert torch.equal(transpose(pad_rows(moved, b, w)) * valid, band * valid), "back again"


@pytest.mark.parametrize("triangles", TRIANGLES)
def test_rows_of_the_transpose_are_columns_of_the_square(triangles):
    N, b = 13, columns_before(w, triangles)
    square = random(N, N, 2) * references.valid_square(N, w, triangles)[..., None]
    band = references.square_to_band(square, w, triangles)
    columns = transpose(pad_rows(band[None], w, b))[0]
    expected = references.square_to_band(square.transpose(0, 1), w, "both")[:, : w + b + 1]
    assert torch.equal(columns, expected)


@pytest.mark.parametrize("triangles", TRIANGLES)
def test_transpose_of_a_chunk_is_a_chunk_of_the_transpose(triangles):
    b = columns_before(w, triangles)
    band = random(1, 23, width(triangles), 2)
    whole = transpose(pad_rows(band, w, b))
    assert torch.equal(transpose(band[:, 6 - w : 11 + b]), whole[:, 6:11])


def test_transpose_is_a_view():
    band = random(1, 20, 2 * w + 1, 2)
    assert transpose(band).untyped_storage().data_ptr() == band.untyped_storage().data_ptr()


@pytest.mark.parametrize("triangles", TRIANGLES)
def test_masks_hold_the_valid_cells(triangles):
    counts = torch.tensor([11, 1, 5])
    band = Band.of(counts, w, triangles)
    expected = references.valid_band(counts, 11, w, triangles)
    assert band.width == width(triangles) and torch.equal(band.mask(range(11)), expected)
    beyond = band.mask(range(-3, 14))
    assert torch.equal(beyond[:, 3:14], expected)
    assert not beyond[:, :3].any() and not beyond[:, 14:].any()
    columns = torch.stack([references.transpose_band(text, w) for text in expected[..., None].long()])[..., 0].bool()
    assert torch.equal(band.mask(range(11), of_columns=True), columns)


@pytest.mark.parametrize("of_columns", [False, True])
@pytest.mark.parametrize("triangles", TRIANGLES)
def test_rows_have_no_mask_if_all_their_cells_are_valid(triangles, of_columns):
    band = Band.of(torch.tensor([30, 19]), w, triangles)
    free = []
    for first in range(-2, 28):
        rows = slice(first, first + 3)
        found = band.edge_mask(rows, of_columns)
        assert (found is None) == bool(band.mask(rows, of_columns).all())
        free.append(found is None)
    assert any(free)


def test_a_chunk_asks_the_device_for_nothing():
    """`shortest` is known beforehand. The lengths hold no data here: reading them would raise."""
    band = Band(w, "both", torch.empty(2, dtype=torch.long, device="meta"), shortest=19)
    assert band.edge_mask(slice(w, 9)) is None and band.edge_mask(slice(0, 9)).device.type == "meta"


@pytest.mark.parametrize("triangles", TRIANGLES)
def test_labels_fill_every_triangle(triangles):
    spans = [(0, 1, 0), (0, 1, 2), (2, 5, 1), (3, 5, 1), (2, 2 + w + 1, 0)]
    band = band_labels(spans, 9, w, triangles, 3)
    assert torch.equal(band, references.band_labels(spans, 9, w, 3, triangles))
    assert band.dtype == torch.uint8 and band.sum() == (2 * len(spans) - 2 if triangles == "both" else len(spans))


@pytest.mark.parametrize("span", [(3, 3, 0), (4, 3, 0), (-1, 1, 0), (8, 10, 0), (0, w + 2, 0)])
def test_a_span_that_does_not_fit_is_refused(span):
    with pytest.raises(ValueError, match=rf"{span[0]}, {span[1]}"):
        band_labels([span], 9, w, "both", 1)


def test_a_span_of_window_plus_one_words_fits():
    assert fits(3, 3 + w + 1, w) and not fits(3, 3 + w + 2, w)
    assert fits(0, 10_000, None)
