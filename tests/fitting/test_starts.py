"""Labels of a new model start at their shares of the data, new labels of a checkpoint at the mean of its labels."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_config
from support.toy import LABELS, toy_folder, toy_records, toy_window, training_arguments, write_jsonl

from modeling_sener.band import Band, band_labels, fits
from modeling_sener.starts import HIGHEST, LOWEST, count_cells, start_biases
from training import train as training
from training.corpus.windows import StoredWindows
from training.fitting import loop
from training.fitting.checkpoint import load_checkpoint, load_for_labels


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


@st.composite
def windows(draw):
    """Draw a span window, triangles, and training windows with distinct spans that the span window holds."""
    span_window, made = draw(st.sampled_from([1, 3, 6, None])), []
    for length in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        spans = draw(st.sets(st.tuples(st.integers(0, length - 1), st.integers(1, length), st.integers(0, 2))))
        made.append(
            toy_window(length, spans=[span for span in spans if span[0] < span[1] and fits(*span[:2], span_window)])
        )
    return span_window, draw(st.sampled_from(["both", "upper"])), made


def cells_of(own, span_window, triangles, labels):
    """The targets (N, W, R) of a training window, and the number of its valid cells."""
    width = own.num_words - 1 if span_window is None else span_window
    valid = Band.of(torch.tensor([own.num_words]), width, triangles).mask(slice(0, own.num_words))
    return band_labels(own.spans, own.num_words, width, triangles, labels), int(valid.sum())


@settings(max_examples=60, deadline=None)
@given(windows(), st.sampled_from([0.0, 0.3, 1.0]))
def test_shares_count_the_cells_over_which_the_loss_is_summed(tmp_path_factory, drawn, share):
    span_window, triangles, made = drawn
    path = tmp_path_factory.getbasetemp() / "windows.arrow"
    StoredWindows.write(path, iter(made))
    stored, config = StoredWindows(path), tiny_config(span_window=span_window, triangles=triangles)
    drawn_share = np.where(stored.is_empty, share, 1.0)
    positive, valid = count_cells(stored.num_words, stored.spans(), config, drawn_share)
    expected = [cells_of(own, span_window, triangles, 3) for own in made]
    assert positive.tolist() == sum(cells.sum(dim=(0, 1)) for cells, _ in expected).tolist()
    weights = [1 if own.spans else share for own in made]  # an epoch draws this share of empty windows
    assert valid == pytest.approx(sum(weight * count for weight, (_, count) in zip(weights, expected, strict=True)))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), st.integers(10**6, 10**12))
def test_each_label_starts_at_its_share_within_bounds(counts, valid):
    starts = start_biases(np.array(counts), valid).double().sigmoid()
    for count, start in zip(counts, starts.tolist(), strict=True):
        assert start == pytest.approx(min(max(max(count, 1) / valid, LOWEST), HIGHEST), rel=1e-5)


def first_step(run_arguments, monkeypatch):
    """The loss of a run's first step, and on its windows the loss of constant scores equal to the labels' shares."""
    seen = {}

    class Stopped(Exception):
        pass

    def stop(run, loss):
        cells, valid = 0, 0
        for indices, weight in run.batches.plan(1):
            for i in indices if weight else ():
                config = run.eval_model.config
                own = run.batches.windows[i]
                positive, count = cells_of(own, config.span_window, config.triangles, config.num_labels)
                cells, valid = cells + positive.sum(dim=(0, 1)), valid + count
        assert run.batches.steps == 1  # the step has all windows
        shares = cells / valid
        seen["loss"] = loss
        seen["constant"] = (
            float(torch.special.entr(torch.stack([shares, 1 - shares])).sum()) * valid / len(run.batches.windows)
        )
        raise Stopped

    monkeypatch.setattr(loop, "end_step", stop)
    with pytest.raises(Stopped):
        training.main([*run_arguments, "--report_to", "none", "--num_epochs", "1", "--batch_size", "16"])
    monkeypatch.undo()
    return seen["loss"], seen["constant"]


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize("span_window", ["2", "8", "40"])
def test_a_new_model_starts_at_the_loss_of_a_constant_guess(toy, tmp_path, monkeypatch, span_window, seed):
    given = training_arguments(toy, tmp_path, "--span_window", span_window, "--seed", seed)
    loss, constant = first_step(given, monkeypatch)
    assert 0.9 * constant < loss < 1.3 * constant  # with one start for all labels, the factor would be up to 2


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """A model that has learnt the toy corpus."""
    output = tmp_path_factory.mktemp("trained")
    given = training_arguments(toy, output, "--num_epochs", "15", "--report_to", "none", "--lora_rank", "0")
    training.main([*given, "--mask_share", "0.05"])
    assert json.loads((output / "checkpoints" / "history.json").read_text())[-1]["f1"] > 0.9
    return output


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_a_trained_model_with_new_labels_starts_no_worse_than_a_constant_guess(
    toy, trained, tmp_path, monkeypatch, kept
):
    renamed = {label: label if n < kept else f"{label} of old" for n, label in enumerate(LABELS)}
    records = [{**record, "entity": [[*entity[:3], renamed[entity[3]]] for entity in record["entity"]]}
               for record in toy_records()]  # fmt: skip
    data = str(write_jsonl(tmp_path / "data.jsonl", records))
    given = training_arguments(toy, tmp_path / "out", "--backbone", str(trained), "--train_file", data, "--dev_file",
                               data, "--lora_rank", "0")  # fmt: skip
    loss, constant = first_step(given, monkeypatch)
    assert loss < 2 * constant


def test_new_labels_start_with_the_mean_output_of_the_trained_ones(trained):
    before, _ = load_checkpoint(trained)
    model, processor = load_for_labels(trained, ["new", "Person", "newer"], {})
    inputs = processor(["Ada Lovelace worked on ResNet-50 in London ."])
    with torch.no_grad():
        now, trained_logits = (each.eval()(**inputs).logits for each in (model, before))
    torch.testing.assert_close(now[..., 1], trained_logits[..., LABELS.index("Person")])
    for new in (0, 2):
        torch.testing.assert_close(now[..., new], trained_logits.mean(dim=-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_new", [True, False])
def test_labels_without_an_example_are_named_and_start_lowest(toy, trained, tmp_path, monkeypatch, capsys, is_new):
    seen = []

    class Stopped(Exception):
        pass

    def stop(run):
        seen.append(run.model.classifier.bias.detach().sigmoid().tolist())
        raise Stopped

    monkeypatch.setattr(training, "train", stop)
    given = training_arguments(toy, tmp_path, "--labels", ",".join(["Zebra", *LABELS, "Ant"]), "--report_to", "none")
    with pytest.raises(Stopped):
        training.main(given if is_new else [*given, "--backbone", str(trained)])
    assert "note: no training example of Zebra, Ant: remove such a label" in capsys.readouterr().out
    if is_new:
        assert max(seen[0][0], seen[0][-1]) < min(seen[0][1:-1]) < 0.1
