"""Progress is a bar on a terminal, and a few lines in a log."""

import io
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.predictions import toy_checkpoint, toy_corpus
from support.toy import ROOT, python

from training.common import progress
from training.common.progress import progress_bar
from training.common.start import close_bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(text):
    """The count in each line."""
    return [int(re.search(r"(\d+)(?:/\d+|it) \[", line)[1]) for line in text.splitlines()]


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.booleans(), st.booleans())
def test_a_log_gets_at_most_a_line_for_each_twentieth(more, initial, is_known, leave):
    """Without a pause; the first and the last state are lines if the bar is one that stays."""
    with pytest.MonkeyPatch.context() as patch:
        file = io.StringIO()
        patch.setattr("sys.stderr", file)
        patch.setattr(progress, "PAUSE", 0)
        total = initial + more
        bar = progress_bar(desc="working", total=total if is_known else None, initial=initial, leave=leave,
                           mininterval=0)  # fmt: skip
        for _ in range(more):
            bar.update()
        bar.close()
    lines = file.getvalue().split("\n")
    assert lines.pop() == "" and all(line.startswith("working: ") for line in lines) and "\r" not in file.getvalue()
    numbers = shown(file.getvalue())
    assert numbers == sorted(set(numbers)) and (len(numbers) <= 22 or not is_known)
    if leave:
        assert numbers[0] == initial and numbers[-1] == total


@pytest.mark.parametrize("leave, expected", [(True, [0, 500]), (False, [])])
def test_a_short_time_gives_no_line_between(capsys, leave, expected):
    for _ in progress_bar(range(500), leave=leave, mininterval=0):
        pass
    assert shown(capsys.readouterr().err) == expected


def test_lines_that_are_written_beside_stand_alone(capsys):
    with progress_bar(total=3, unit="step", desc="outer") as bar, progress_bar(total=5, leave=False) as inner:
        inner.update()
        bar.write("a note", file=sys.stderr)
        bar.update(2)
        inner.close()
        close_bars()  # as before the message of an error
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" [")[0] for line in lines] == ["outer:   0% 0/3", "a note", "outer:  67% 2/3"]


def test_a_terminal_gets_a_bar(monkeypatch):
    file = Terminal()
    monkeypatch.setattr("sys.stderr", file)
    with progress_bar(total=2, mininterval=0) as bar:
        bar.update(2)
    assert file.getvalue().count("\r") > 1 and "2/2" in file.getvalue().rpartition("\r")[2]


def test_the_log_of_a_command(tmp_path):
    toy_checkpoint(tmp_path)
    corpus = toy_corpus(tmp_path / "corpus.jsonl", 300)
    done = python(ROOT / "training" / "predict.py", "--model", tmp_path / "model", "--input", corpus, "--output",
                  tmp_path / "out.jsonl", "--batch_size", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr  # nor a bar of the libraries
    lines = [line.partition(" [")[0] for line in done.stderr.splitlines() if "text/s" in line]
    assert lines == ["  0% 0/300", "100% 300/300"]
