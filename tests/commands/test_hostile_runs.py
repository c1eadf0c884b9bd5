"""Full disks, two writers of one file, signals and killed processes: written results are never lost."""

import json
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.hostile import MINUTE, Command, full_disk, limit_files, pair, wait_for, workers
from support.killed import run_until_killed, start_two_processes
from support.predictions import assert_same, read, results_of, toy_checkpoint, toy_corpus, write
from support.toy import ROOT, TWO_PROCESSES, launch, python, toy_folder, toy_records, training_arguments, write_jsonl

from training import baseline_tagger, predict, score
from training import train as training
from training.common.files import WriteError, write_text
from training.corpus.data import DataError, Document
from training.fitting.checkpoint import load_checkpoint, save_checkpoint
from training.fitting.state import ResumeError, newest_state
from training.inference.job import Prediction
from training.inference.results import Results, prediction_line


FIELDS = ["--num_epochs", "2", "--lora_rank", "0", "--save_steps", "3", "--report_to", "none"]
COUNT = 600  # texts of the corpus


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Use one thread, as the run of `unbroken` does: weights are compared bit by bit."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # or else `use_all_cores` would raise the number of threads
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    done = python(ROOT / "training" / "train.py", *training_arguments(toy, folder, *FIELDS), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, a corpus, the output of an unbroken run over it, and gold data."""
    folder = tmp_path_factory.mktemp("made")
    toy_checkpoint(folder)
    toy_corpus(folder / "corpus.jsonl", COUNT)
    predict.main(predicting(folder, folder / "expected.jsonl"))
    write_jsonl(folder / "gold.jsonl", toy_records(40))
    return folder


def predicting(folder, output, *more):
    return ["--model", str(folder / "model"), "--input", str(folder / "corpus.jsonl"), "--output", str(output), *more]


def scoring(folder, *more):
    return ["--model", str(folder / "model"), "--data", str(folder / "gold.jsonl"), *map(str, more)]


def assert_same_weights(folder, other):
    found, expected = (load_file(path / "model.safetensors") for path in (folder, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def assert_resumes(toy, folder, unbroken, *more):
    training.main(training_arguments(toy, folder, *FIELDS, "--resume", *more))
    assert_same_weights(folder, unbroken)


# A full disk.


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "before")
    with full_disk(1000), pytest.raises(WriteError) as error:
        write_text(path, "x" * 2000)
    assert str(error.value) == f"{path}: cannot be written (File too large)"
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(WriteError, match=f"{tmp_path}/no/a.json: cannot be written .No such file"):
        write_text(tmp_path / "no" / "a.json", "")


@pytest.mark.parametrize("room", [0, 1, 700, 2500])
def test_a_prediction_resumes_after_a_full_disk(tmp_path, room):
    path, lines = tmp_path / "out.jsonl", [prediction_line(f"text {n}", []) for n in range(100)]  # of about 60 bytes
    first, second = results_of(path), Results(str(path))
    write(first, lines[:20])
    size = (tmp_path / "out.jsonl.partial").stat().st_size
    with full_disk(size + room), pytest.raises(WriteError) as error:
        write(first, lines[20:])
    assert str(error.value) == (f"{path}.partial: cannot be written (File too large); 20 texts are done: make room "
                                "and start the same command with --resume")  # fmt: skip
    documents = iter([Document(f"text {n}", "") for n in range(100)])
    second.resume(documents)
    assert second.done >= 20 + room // 80
    second.begin({})
    write(second, [prediction_line(document.id, []) for document in documents])
    second.finish()
    assert path.read_text().splitlines() == lines


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_results_stay_if_there_is_no_room_for_the_last_file(tmp_path, ending):
    path, results = tmp_path / f"out{ending}", results_of(tmp_path / f"out{ending}")
    write(results, [prediction_line(f"text {n}", []) for n in range(3000)])
    path.write_text("before")
    with full_disk(300), pytest.raises(WriteError, match="3,000 texts are done: make room"):
        results.finish()
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.name}.partial"}
    assert path.read_text() == "before" and len(read(results.partial)) == 3000
    again = Results(str(path))
    again.resume(iter([Document(f"text {n}", "") for n in range(3000)]))
    again.begin({})
    again.finish()
    assert len(read(path)) == 3000 and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_stays_if_there_is_no_room_for_the_next(made, tmp_path):
    model, processor = load_checkpoint(made / "model")
    save_checkpoint(model, processor, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with full_disk(20_000), pytest.raises(WriteError, match=f"{tmp_path}: cannot be written .*File too large"):
        save_checkpoint(model, processor, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    load_checkpoint(tmp_path)
    save_checkpoint(model, processor, tmp_path)
    assert not torch.equal(*(next(each.parameters()) for each in (model, load_checkpoint(made / "model")[0])))


# An epoch has 8 steps. A state is saved after steps 3 and 6 and at its end, the best weights at its end.
@pytest.mark.parametrize("steps, what", [(1, "state_0001_0000003"), (5, "state_0001_0000006"), (7, "")])
def test_a_training_resumes_after_a_full_disk(toy, tmp_path, unbroken, monkeypatch, steps, what):
    step, done = torch.optim.AdamW.step, []

    def fill(*arguments, **named):
        done.append(None)
        if len(done) == steps:
            limit_files(60_000)
        return step(*arguments, **named)

    with full_disk(-1), monkeypatch.context() as patch:  # both end the limit that `fill` sets
        patch.setattr(torch.optim.AdamW, "step", fill)
        with pytest.raises(WriteError, match="cannot be written .*make room and go on with --resume") as error:
            training.main(training_arguments(toy, tmp_path, *FIELDS))
    place = tmp_path / "checkpoints" / what if what else tmp_path
    assert str(error.value).startswith(f"{place}: ")
    assert str(error.value).endswith("from the state before it") == (what == "state_0001_0000006")
    assert_resumes(toy, tmp_path, unbroken)


@pytest.mark.slow
def test_commands_name_the_file_that_a_full_disk_has_no_room_for(toy, made, tmp_path):
    """In one line, without a traceback."""
    (tmp_path / "report.json").write_text("before")
    for size, command, arguments, file in (
        (500, "train", training_arguments(toy, tmp_path / "a", *FIELDS), "a/checkpoints/windows.arrow"),
        (9000, "predict", predicting(made, tmp_path / "out.jsonl"), "out.jsonl.partial"),
        (500, "score", scoring(made, "--output", tmp_path / "report.json"), "report.json"),
        (500, "score", scoring(made, "--report", tmp_path / "report.html"), "report.html"),
    ):
        code, lines = Command(command, arguments, limit=size).end()
        assert code == 1 and lines[-1].startswith(f"error: {tmp_path / file}: cannot be written ("), lines
        assert [line.startswith("error: ") for line in lines].count(True) == 1 and "Traceback" not in str(lines), lines
        if command == "score":
            assert json.loads(lines[-2])["texts"] == 40  # the scores are printed anyway
    assert (tmp_path / "report.json").read_text() == "before" and not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_a_tracker_that_cannot_write_ends_the_run_and_its_folder_is_named(toy, tmp_path):
    """The tracker fails before the next state: it writes after each step, a state is saved three steps later."""
    checkpoints = tmp_path / "checkpoints"
    training_run = Command("train", training_arguments(toy, tmp_path, *FIELDS[2:-2], "--num_epochs", "50"))
    wait_for((checkpoints / "state_0002_0000000").exists, training_run.is_running)
    psutil.Process(training_run.pid).rlimit(psutil.RLIMIT_FSIZE, (300, 300))
    code, lines = training_run.end()
    assert code == 1 and lines[-1].startswith(f"error: {checkpoints}/logs: cannot be written ("), lines
    load_checkpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_standard_output_is_named(made):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "training/score.py", *scoring(made)], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    last = done.stderr.splitlines()[-1].rpartition("\r")[2]
    assert last == "error: standard output: cannot be written (No space left on device)"


# Two runs.


@pytest.mark.parametrize("command, more", [(training, []), (training, ["--resume"]), (baseline_tagger, [])])
def test_the_second_of_two_trainings_in_a_folder_is_refused_and_changes_nothing(
    toy, tmp_path, monkeypatch, command, more
):
    step, intruded, refused = torch.optim.AdamW.step, [], []

    def intrude(*arguments, **named):
        if not intruded:
            intruded.append(None)
            before = sorted(tmp_path.rglob("*"))
            with pytest.raises(ResumeError) as error:
                command.main(training_arguments(toy, tmp_path, *FIELDS, *more))
            refused.append(str(error.value))
            assert sorted(tmp_path.rglob("*")) == before
        return step(*arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", intrude)
    command.main(training_arguments(toy, tmp_path, *FIELDS))
    assert refused == [
        f"{tmp_path}: another run is at work in it: wait for its end, end it, or give another output_dir"
    ]


def test_the_second_of_two_predictions_is_refused_before_it_works(made, tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    first = Prediction([str(made / "corpus.jsonl")], str(path), resume=False)
    assert first.start()
    started = Prediction([str(made / "corpus.jsonl")], str(path), resume=False)
    assert started.start()  # both have checked the output, and neither has written
    first.show({})
    with pytest.raises(DataError, match="another run is writing it; end that one first"):
        started.show({})
    for more in ([], ["--resume"]):
        with pytest.raises(DataError, match="another run is writing it; end that one first"):
            predict.main(predicting(made, path, *more))
    while texts := first.next_texts():
        first.add([[] for _ in texts])
    first.finish()
    assert [record["id"] for record in read(path)] == [f"text {n}" for n in range(COUNT)]


@pytest.mark.slow
def test_a_killed_run_leaves_no_lock(toy, tmp_path, unbroken):
    """Two real commands. The second is refused while the first runs, but not for a lock after the first was killed."""
    first = Command("train", training_arguments(toy, tmp_path, *FIELDS[2:], "--num_epochs", "500"))
    wait_for(lambda: (tmp_path / "checkpoints").exists() and newest_state(tmp_path / "checkpoints"), first.is_running)
    code, lines = Command("train", training_arguments(toy, tmp_path, *FIELDS, "--resume")).end()
    assert (
        first.is_running() and code == 1 and lines[-1].startswith(f"error: {tmp_path}: another run is at work in it")
    )
    first.send(signal.SIGKILL)
    assert first.end()[0] == -signal.SIGKILL
    code, lines = Command("train", training_arguments(toy, tmp_path, *FIELDS)).end()
    assert code == 1 and lines[-1].startswith(f"error: {tmp_path} holds a run that was ended in epoch ")
    shutil.rmtree(tmp_path / "checkpoints")
    code, lines = Command("train", training_arguments(toy, tmp_path, *FIELDS)).end()
    assert code == 0, lines
    assert_same_weights(tmp_path, unbroken)


# Signals.


@pytest.mark.slow
def test_a_terminated_training_says_so_and_resumes_to_the_same_weights(toy, tmp_path, unbroken):
    folder, given = tmp_path / "checkpoints", training_arguments(toy, tmp_path, *FIELDS, "--resume")
    for state in ("state_0001_0000003", "state_0002_0000000"):
        command = Command("train", given)
        wait_for(lambda: folder.exists() and getattr(newest_state(folder), "name", "") >= state, command.is_running)  # noqa: B023
        command.send(signal.SIGTERM)
        code, lines = command.end()
        assert code == 143 and lines[-1] == "terminated; go on with --resume", lines
        assert "Traceback" not in str(lines), lines
    assert_resumes(toy, tmp_path, unbroken)


@pytest.mark.slow
def test_a_terminated_prediction_says_so_and_resumes(made, tmp_path):
    aside, given = tmp_path / "out.jsonl.partial", predicting(made, tmp_path / "out.jsonl", "--resume")
    for _ in range(2):
        size = aside.stat().st_size if aside.exists() else 0
        command = Command("predict", given)
        wait_for(lambda: aside.exists() and aside.stat().st_size > size, command.is_running)  # noqa: B023
        command.send(signal.SIGTERM)
        code, lines = command.end()
        assert code == 143 and lines[-1] == "terminated; go on with --resume", lines
        assert "Traceback" not in str(lines), lines
    predict.main(given)
    assert_same(read(tmp_path / "out.jsonl"), read(made / "expected.jsonl"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_of_a_launcher_end_with_it(toy, tmp_path, number):
    given = training_arguments(toy, tmp_path, *FIELDS[2:], "--num_epochs", "500")
    launcher = start_two_processes("train.py", given)
    wait_for(lambda: (tmp_path / "checkpoints").exists() and newest_state(tmp_path / "checkpoints"))
    below = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(number)
    assert len(below) >= 2 and not psutil.wait_procs(below, timeout=MINUTE)[1]
    assert launcher.wait(MINUTE) != 0
    assert newest_state(tmp_path / "checkpoints") is not None


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_score_that_is_ended_leaves_the_earlier_reports(made, tmp_path, ending):
    """It is terminated during the scoring, or killed when each of its files gets its name."""
    files = [tmp_path / "report.json", tmp_path / "report.html"]
    for file in files:
        file.write_text("before")
    given = scoring(made, "--output", files[0], "--report", files[1])
    if ending == signal.SIGTERM:
        command = Command("score", given)
        wait_for(lambda: b"all are used\n" in command.printed, command.is_running)  # the last line before the scoring
        command.send(signal.SIGTERM)
        code, lines = command.end()
        assert code == 143 and lines[-1] == "terminated" and "Traceback" not in str(lines), lines
        assert [file.read_text() for file in files] == ["before", "before"]
    else:
        for count, whole in ((1, 0), (2, 1)):
            assert run_until_killed("score", "os.rename", ".partial", count, 0, given) == -signal.SIGKILL
            assert [file.read_text() == "before" for file in files] == [not whole, True]
    score.main(given)
    assert json.loads(files[0].read_text())["texts"] == 40 and "</html>" in files[1].read_text()


# The death of one process of two.


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_a_run_ends_when_one_of_its_processes_dies(toy, made, tmp_path, script, rank):
    """With the real launcher. The run then resumes from the files that it has written."""
    trains, aside = script == "train.py", tmp_path / "out.jsonl.partial"
    output = tmp_path / ("out" if trains else "out.jsonl")
    given = training_arguments(toy, output, *FIELDS, "--resume") if trains else predicting(made, output, "--resume")
    if trains:
        done = launch(script, *training_arguments(toy, tmp_path / "unbroken", *FIELDS), options=TWO_PROCESSES)
        assert done.returncode == 0, done.stderr
    launcher = start_two_processes(script, given)
    written = (lambda: newest_state(output / "checkpoints")) if trains else \
        (lambda: aside.exists() and aside.stat().st_size)  # fmt: skip
    wait_for(lambda: len(workers(launcher)) == 2 and written(), lambda: launcher.poll() is None)
    below = workers(launcher)
    below[rank].kill()
    begin = time.monotonic()
    assert not psutil.wait_procs(list(below.values()), timeout=MINUTE)[1]
    assert launcher.wait(MINUTE) != 0 and time.monotonic() - begin < MINUTE
    done = launch(script, *given, options=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    if trains:
        assert_same_weights(output, tmp_path / "unbroken")
    else:
        assert_same(read(output), read(made / "expected.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_a_process_that_waits_for_a_dead_one_ends_with_an_error(toy, made, tmp_path, script, rank):
    """
    Without a launcher, which would end the process itself. The other process is stopped before it is killed, so that
    this one waits for it.
    """
    trains, aside = script == "train.py", tmp_path / "out.jsonl.partial"
    given = training_arguments(toy, tmp_path / "out", *FIELDS[2:], "--num_epochs", "500") if trains else \
        predicting(made, tmp_path / "out.jsonl")  # fmt: skip
    both = pair(script.removesuffix(".py"), given, 29511 + 2 * rank + trains)
    written = (lambda: newest_state(tmp_path / "out" / "checkpoints")) if trains else \
        (lambda: aside.exists() and aside.stat().st_size)  # fmt: skip
    wait_for(written, lambda: all(command.is_running() for command in both))
    both[rank].send(signal.SIGSTOP)
    time.sleep(1)
    both[rank].send(signal.SIGKILL)
    code, lines = both[1 - rank].end(timeout=MINUTE)
    assert both[rank].end()[0] == -signal.SIGKILL
    assert code == 1 and lines[-1].startswith("error: another process of this run has ended ("), lines
    assert "Traceback" not in str(lines)
