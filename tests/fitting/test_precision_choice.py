"""A run chooses its precision by the device and reports it; it is not resumed in another one."""

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from support.toy import tagger_arguments, toy_folder, training_arguments

from modeling_sener import SenerModel
from training import baseline_tagger as tagger
from training import train as training
from training.fitting.precision import choose_precision, has_bf16, training_device
from training.fitting.state import ResumeError, read_progress


# Processors as `torch.cpu.get_capabilities` describes them. It does not know the last one.
NATIVE = [
    {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False},
    {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": True},
    {"architecture": "aarch64", "neon": True, "bf16": True, "sve_bf16": True, "sve_max_length": 32},
]
EMULATED = [
    {"architecture": "x86_64", "avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False},
    {"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False},
    {"architecture": "aarch64", "neon": True, "bf16": False},
    {},
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def processor(monkeypatch):
    """Set the capabilities that torch finds in the processor."""
    return lambda capabilities: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize("capabilities", NATIVE)
def test_bf16_is_taken_if_the_processor_has_it(processor, capabilities):
    processor(capabilities)
    taken, line = choose_precision("auto", CPU)
    assert taken == "bf16" and line.startswith("mixed_precision: auto takes bf16: this processor has ")
    assert choose_precision("bf16", CPU) == ("bf16", None)


@pytest.mark.parametrize("capabilities", EMULATED)
def test_emulated_bf16_is_not_chosen_and_a_warning_follows_if_it_is_given(processor, capabilities):
    processor(capabilities)
    taken, line = choose_precision("auto", CPU)
    assert taken == "no" and "auto takes no: this processor (" in line and "no instructions for bfloat16" in line
    taken, line = choose_precision("bf16", CPU)
    assert taken == "bf16" and line.startswith("warning: mixed_precision is bf16: this processor (")


def test_without_onednn_bf16_is_emulated_on_any_processor(processor, monkeypatch):
    processor(NATIVE[0])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert has_bf16(CPU) == (False, "this torch was built without oneDNN and emulates bfloat16")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_an_accelerator_without_bf16_takes_fp16(monkeypatch, kind):
    for native, expected in ((True, "bf16"), (False, "fp16")):
        # `is_bf16_supported` is also true for emulation, which must not count.
        monkeypatch.setattr(getattr(torch, kind), "is_bf16_supported", lambda including_emulation=True, native=native:
                            including_emulation or native)  # fmt: skip
        assert choose_precision("auto", torch.device(kind))[0] == expected
        assert (choose_precision("bf16", torch.device(kind))[1] is None) == native


@pytest.mark.parametrize("asked", ["no", "fp16"])
def test_other_precisions_are_taken_unchanged(asked):
    assert choose_precision(asked, CPU) == (asked, None)


def test_the_device_is_accelerates(no_state, monkeypatch):
    assert training_device().type == PartialState(cpu=not torch.accelerator.is_available()).device.type
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert training_device().type == "cpu"


@pytest.mark.parametrize("capabilities, precision", [(NATIVE[0], "bf16"), (EMULATED[0], "no")])
def test_a_run_computes_in_the_precision_of_auto_and_reports_it_once(
    toy, tmp_path, no_state, processor, monkeypatch, capsys, capabilities, precision
):
    processor(capabilities)
    forward, seen = SenerModel.forward, set()

    def spy(model, *given, **named):
        if model.training:
            seen.add(torch.is_autocast_enabled("cpu"))
        return forward(model, *given, **named)

    monkeypatch.setattr(SenerModel, "forward", spy)
    training.main(training_arguments(toy, tmp_path, "--num_epochs", "1", "--mixed_precision", "auto", "--report_to",
                                     "none", "--batch_size", "16"))  # fmt: skip
    assert capsys.readouterr().out.count(f"mixed_precision: auto takes {precision}: ") == 1
    assert seen == {precision == "bf16"}
    state = read_progress(tmp_path / "checkpoints" / "state_0002_0000000")
    assert state["resume_signature"]["mixed_precision"] == precision


def test_a_run_is_not_resumed_in_another_precision(toy, tmp_path, no_state, processor):
    given = training_arguments(toy, tmp_path, "--num_epochs", "1", "--report_to", "none", "--batch_size", "16")
    processor(EMULATED[0])
    training.main([*given, "--mixed_precision", "auto"])
    training.main([*given, "--mixed_precision", "no", "--resume"])  # the same precision, given explicitly
    AcceleratorState._reset_state(reset_partial_state=True)  # as on another machine
    processor(NATIVE[0])
    with pytest.raises(ResumeError, match="mixed_precision was 'no' in this run and is 'bf16' now"):
        training.main([*given, "--mixed_precision", "auto", "--resume"])


def test_the_tagger_chooses_its_precision_too(toy, tmp_path, no_state, processor, capsys):
    processor(EMULATED[0])
    tagger.main(tagger_arguments(toy, tmp_path, "--num_epochs", "1", "--mixed_precision", "auto"))
    assert "mixed_precision: auto takes no: " in capsys.readouterr().out
