"""Commands can print any text on any terminal; files are UTF-8 on any system."""

import ast
import io
import json
import os
import sys

import pytest
from support.demo_server import DemoServer
from support.predictions import toy_checkpoint
from support.toy import CODE, ROOT, as_raw, python, toy_folder, toy_records, training_arguments, write_jsonl

from training.common.start import run


LABEL = "药物💊"
TERMINAL = {"PYTHONIOENCODING": "cp1252:strict"}  # as on Windows


@pytest.mark.parametrize("text", [LABEL, "caf\xe9", "\udcff", "a\x00\x1b[2J"])
def test_any_text_can_be_printed(monkeypatch, text):
    file = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(file, encoding="cp1252"))
    run(lambda: print(text, end=""))
    assert file.getvalue() == text.encode("cp1252", "backslashreplace")


def test_an_error_message_of_any_text_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr", open(os.dup(2), "w", encoding="ascii", errors="strict"))  # noqa: SIM115

    def fail():
        raise ValueError(f"unknown label {LABEL}")

    with pytest.raises(SystemExit):
        run(fail)
    sys.stderr.close()
    assert capfd.readouterr().err == "error: unknown label \\u836f\\u7269\\U0001f48a\n"


def test_a_command_runs_without_a_standard_output(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    run(lambda: print(LABEL))
    print(LABEL, file=sys.stderr, flush=True)


@pytest.mark.slow
def test_commands_succeed_in_a_terminal_that_lacks_the_characters(tmp_path):
    toy_folder(tmp_path)
    records = [as_raw(record) for record in toy_records()]
    for record in records:
        record["id"] += " 💊"
        for entity in record["entities"]:
            entity["label"] = LABEL
    data = write_jsonl(tmp_path / "药 \udcff.jsonl", records)  # its name is not UTF-8 on the disk
    toy_checkpoint(tmp_path)
    (tmp_path / "药.txt").write_text("ResNet-50 药物 💊", encoding="utf-8")
    out, output = str(tmp_path / "out 药"), tmp_path / "found 药.jsonl"
    commands = [
        ("train", training_arguments(tmp_path, out, "--train_file", str(data), "--dev_file", str(data),
                                     "--num_epochs", "1", "--save_steps", "3")),
        ("train", training_arguments(tmp_path, out, "--train_file", str(data), "--dev_file", str(data),
                                     "--num_epochs", "1", "--save_steps", "3", "--resume")),
        ("describe_data", [str(data), "--span_window", "8"]),
        ("score", ["--model", out, "--data", str(data), "--report", str(tmp_path / "r.html"), "--threshold", "0",
                   "--output", str(tmp_path / "r.json")]),
        ("predict", ["--model", out, "--input", str(data), str(tmp_path / "药.txt"), "--output", str(output),
                     "--threshold", "0"]),
        *(("extract", [str(tmp_path / "药.txt"), "--model", out, "--threshold", "0", "--format", form])
          for form in ("table", "json", "brat", "conll")),
    ]  # fmt: skip
    done = python(
        ROOT / "tests" / "support" / "elsewhere.py", "linux", json.dumps(commands), OMP_NUM_THREADS="1", **TERMINAL
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "\\u836f\\u7269\\U0001f48a" in done.stdout and "resumed from" in done.stdout
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(found) == 9 and found[-1]["id"] == str(tmp_path / "药.txt") and found[0]["id"].endswith("💊")
    assert {entity["label"] for record in found for entity in record["entities"]} == {LABEL}
    assert LABEL in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_demo_starts_in_a_terminal_that_lacks_the_characters(demo_model):
    server = DemoServer(demo_model, **TERMINAL)
    server.stop()
    assert server.url and "Error" not in server.log


def without_encoding(source):
    """Find calls that read or write text files, or output of programs, in the system's encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        modes = [value.value for value in [*node.args, *(keyword.value for keyword in node.keywords)]
                 if isinstance(value, ast.Constant) and isinstance(value.value, str)]  # fmt: skip
        if name == "open" and owner not in ("os", "self", "gzip"):
            lacks = "encoding" not in given and not any("b" in mode and len(mode) <= 3 for mode in modes)
        elif name in ("read_text", "write_text") and owner:
            lacks = "encoding" not in given
        else:
            lacks = given.get("text", given.get("universal_newlines")) == "True" and "encoding" not in given
        if lacks:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_names_the_encoding_of_text_files(path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []


def test_a_call_without_an_encoding_is_found():
    for source in ("open(path)", "open(path, 'w')", "path.open()", "path.read_text()", "path.write_text(text)",
                   "subprocess.run(a, text=True)"):  # fmt: skip
        assert len(without_encoding(source)) == 1, source
    for source in ("open(path, 'rb')", "path.open('a+b')", "open(path, encoding='utf-8')", "write_text(path, text)",
                   "path.read_text(encoding='utf-8')", "self.open()", "subprocess.run(a)"):  # fmt: skip
        assert without_encoding(source) == [], source
