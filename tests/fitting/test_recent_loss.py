"""The mean loss of the last steps, and the warning when it rises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy import toy_folder, training_arguments

from training import train
from training.fitting import recent_loss
from training.fitting.recent_loss import RISE, STEPS, RecentLoss


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=3 * STEPS))
def test_the_mean_is_that_of_the_last_steps(losses):
    recent = RecentLoss()
    for loss in losses:
        recent.add(loss)
    last = losses[-STEPS:]
    assert recent.mean == pytest.approx(sum(last) / len(last))


@given(st.lists(st.floats(1.0, RISE - 0.01), max_size=3 * STEPS))
def test_a_loss_that_varies_is_no_rise(losses):
    recent = RecentLoss()
    assert [recent.add(loss) for loss in losses] == [None] * len(losses)


@given(st.integers(STEPS, 2 * STEPS))
def test_a_rise_is_told_once_with_both_means(steps):
    recent = RecentLoss()
    assert all(recent.add(2.0) is None for _ in range(steps))
    told = [(recent.add(2.0 * RISE + 1), recent.mean) for _ in range(STEPS)]
    warned = [warning is not None for warning, _ in told]
    assert warned.count(True) == 1 and warned.index(True) == [mean >= 2.0 * RISE for _, mean in told].index(True)
    assert all(recent.add(1e6) is None for _ in range(STEPS))


def test_a_high_beginning_is_no_rise():
    recent = RecentLoss()
    assert all(recent.add(1000.0 / (1 + step)) is None for step in range(10 * STEPS))


def test_a_run_tells_of_the_rise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recent_loss, "RISE", 1e-9)  # any loss is a rise
    monkeypatch.setattr(recent_loss, "STEPS", 3)
    toy = toy_folder(tmp_path)
    train.main(training_arguments(toy, tmp_path / "out", "--num_epochs", "1", "--report_to", "none"))
    printed = capsys.readouterr()
    assert printed.err.count("warning: the loss has risen from ") == 1
    assert printed.out.count("are few: F1 on them says little (score.py gives its interval)") == 1  # dev, not train
