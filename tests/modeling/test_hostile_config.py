"""Damaged, foreign and hand-edited checkpoints give a clear error or a model that works, never random results."""

import inspect
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.tiny import tiny_tokenizer
from support.tiny_models import BACKBONES, LABELS, tiny_config
from support.toy import ROOT, python
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel
from transformers.utils import logging

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training import extract
from training.common.start import run
from training.fitting.checkpoint import load_checkpoint


TEXT = "We train ResNet-50 on ImageNet ."
BELONG = "config.json and model.safetensors do not belong together"
FETCH = "fetch it again"


def write_checkpoint(folder, backbone="bert", **fields):
    torch.manual_seed(0)
    model = SenerModel(tiny_config({**BACKBONES[backbone], "vocab_size": 300}, **fields))
    model.save_pretrained(folder)
    SenerProcessor(tiny_tokenizer("wordpiece"), model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    write_checkpoint(folder / "good")
    write_checkpoint(folder / "two-labels", id2label={0: "A", 1: "B"}, label2id={"A": 0, "B": 1})
    write_checkpoint(folder / "wider", biaffine_size=7)
    write_checkpoint(folder / "deeper", span_layers=3)
    BertModel(BertConfig(**{**BACKBONES["bert"], "vocab_size": 300})).save_pretrained(folder / "bert")
    (folder / "text.txt").write_text(TEXT)
    return folder


def cut(name, share):
    def fault(folder, case):
        content = (case / name).read_bytes()
        (case / name).write_bytes(content[: int(len(content) * share)])

    return fault


def put(name, content):
    return lambda folder, case: (case / name).write_bytes(content)


def drop(*names):
    return lambda folder, case: [(case / name).unlink() for name in names]


def take(source, name="model.safetensors"):
    return lambda folder, case: shutil.copy(folder / source / name, case / name)


def set_field(file, field, value):
    def fault(folder, case):
        fields = json.loads((case / file).read_text())
        (case / file).write_text(json.dumps({**fields, field: value}))

    return fault


def nan_weight(folder, case):
    model = SenerModel.from_pretrained(case)
    model.biaffine.start.bias.data[1] = float("nan")
    model.save_pretrained(case)


BINARY = bytes(range(256)) * 40
MODEL, PROCESSOR = "model", "processor"  # which of the two cannot be loaded
FAULTS = {
    "half the weights": (cut("model.safetensors", 0.5), MODEL, ["model.safetensors is damaged", FETCH]),
    "a hundredth of the weights": (cut("model.safetensors", 0.01), MODEL, ["model.safetensors is damaged", FETCH]),
    "no byte of weights": (cut("model.safetensors", 0), MODEL, ["model.safetensors is damaged", FETCH]),
    "weights that are none": (put("model.safetensors", BINARY), MODEL, ["model.safetensors is damaged", FETCH]),
    "no weights": (drop("model.safetensors"), MODEL, ["no file named model.safetensors"]),
    "a BERT's weights": (take("bert"), MODEL, ["weights are missing: backbone.embeddings", BELONG]),
    "weights of other labels": (take("two-labels"), MODEL, ["classifier.bias", "(2,)", "(3,)", BELONG]),
    "weights of another width": (take("wider"), MODEL, ["biaffine.", "by config.json", BELONG]),
    "weights of more layers": (take("deeper"), MODEL, ["no place for the weights blocks.2.", BELONG]),
    "a NaN in the weights": (nan_weight, MODEL, ["the weights biaffine.start.bias hold NaN"]),
    "half a config": (cut("config.json", 0.5), MODEL + PROCESSOR, ["config.json", "not a valid JSON"]),
    "no byte of config": (cut("config.json", 0), MODEL + PROCESSOR, ["config.json", "not a valid JSON"]),
    "a config that is none": (put("config.json", BINARY), MODEL + PROCESSOR, ["config.json", "not a valid JSON"]),
    "a config that is a list": (put("config.json", b"[]"), MODEL + PROCESSOR, []),
    "no config": (drop("config.json"), MODEL + PROCESSOR, []),
    "another model's type": (set_field("config.json", "model_type", "t5"), PROCESSOR, ["model_type", "t5"]),
    "half a tokenizer": (cut("tokenizer.json", 0.5), PROCESSOR, ["tokenizer.json", FETCH]),
    "no byte of tokenizer": (cut("tokenizer.json", 0), PROCESSOR, ["tokenizer.json", FETCH]),
    "a tokenizer that is none": (put("tokenizer.json", b"[]"), PROCESSOR, ["tokenizer.json", FETCH]),
    "no tokenizer": (drop("tokenizer.json", "tokenizer_config.json"), PROCESSOR, ["tokenizer.json", FETCH]),
    "half a tokenizer_config": (cut("tokenizer_config.json", 0.5), PROCESSOR, ["tokenizer_config.json", FETCH]),
    "no processor_config": (drop("processor_config.json"), PROCESSOR, ["processor_config.json is missing", FETCH]),
    "half a processor_config": (cut("processor_config.json", 0.5), PROCESSOR, ["processor_config.json"]),
    "a word pattern that is none": (
        set_field("processor_config.json", "word_pattern", ["("]), PROCESSOR, ["word_pattern", "regular expression"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_or_foreign_checkpoint_is_one_clear_error(folder, tmp_path, capsys, name):
    fault, what, parts = FAULTS[name]
    case = tmp_path / "case"
    shutil.copytree(folder / "good", case)
    fault(folder, case)
    loaders = []
    if MODEL in what:
        loaders += [SenerModel.from_pretrained, lambda name: AutoModel.from_pretrained(name, trust_remote_code=True)]
    if PROCESSOR in what:
        loaders += [SenerProcessor.from_pretrained,
                    lambda name: AutoProcessor.from_pretrained(name, trust_remote_code=True)]  # fmt: skip
    for load in [*loaders, load_checkpoint]:
        with pytest.raises((ValueError, OSError)) as error:
            load(str(case))
        if not (load is loaders[-1] and PROCESSOR in what):  # transformers itself reads these two files first
            assert all(part in str(error.value) for part in parts), error.value
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(lambda: extract.main([str(folder / "text.txt"), "--model", str(case)]))
    printed = capsys.readouterr()
    assert end.value.code == 1 and printed.out == ""
    lines = [line for line in printed.err.splitlines() if "Loading weights" not in line and line.strip()]
    assert len(lines) == 1 and lines[0].startswith(f"error: {case}: ")
    assert all(part in lines[0] for part in parts)


def test_the_undamaged_one_is_loaded_and_a_command_shows_no_traceback(folder, tmp_path):
    model, processor = load_checkpoint(folder / "good")
    assert works(model, processor)
    shutil.copytree(folder / "good", tmp_path / "case")
    cut("model.safetensors", 0.5)(folder, tmp_path / "case")
    done = python(ROOT / "training" / "extract.py", folder / "text.txt", "--model", tmp_path / "case")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 and "model.safetensors is damaged" in done.stderr


def test_a_tokenizer_of_another_vocabulary_is_refused(folder, tmp_path):
    shutil.copytree(folder / "good", tmp_path / "case")
    content = tiny_tokenizer("bytelevel").backend_tokenizer.to_str()
    (tmp_path / "case" / "tokenizer.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"tokenizer.json has 34\d tokens, the weights 300: they do not belong together"
    ):
        load_checkpoint(tmp_path / "case")


def test_weights_of_other_sizes_are_drawn_anew_only_on_request(folder, tmp_path):
    shutil.copytree(folder / "good", tmp_path / "case")
    take("two-labels")(folder, tmp_path / "case")
    model, info = SenerModel.from_pretrained(tmp_path / "case", ignore_mismatched_sizes=True, output_loading_info=True)
    assert {name for name, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model.classifier.weight.isfinite().all()


def works(model, processor):
    """Whether a model finds entities with right offsets in a short text, and none in an empty one."""
    inputs = processor([TEXT, ""])
    candidates = model.find_candidates(**inputs, thresholds=processor.thresholds(0.0))
    first, second = processor.entities(candidates, inputs)
    assert processor.post_process(model(**inputs), inputs, threshold=1.0)[1] == []
    return bool(first) and not second and all(TEXT[e["start"] : e["end"]] == e["text"] for e in first)


ODD = [None, True, 0, 1, -1, 7, 10**5, 10**9, 10**30, 0.5, -0.5, float("nan"), float("inf"), 1e300, "", "x", "8",
       "\ud800", [], ["a"], [[[]]], {}, {"0": "A", "1": "A", "2": "C"}, {"0": "", "1": "B", "2": "C"},
       {"0": "A", "2": "B"}, {"x": "A"}, {"0": 1, "1": None, "2": []}, {"Method": 0.5, "Nope": 0.5},
       dict.fromkeys(LABELS, 2), dict.fromkeys(LABELS, "0.5"), {"A": 0, "B": 1, "C": 5}]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
VALUES = st.sampled_from(ODD) | JSON
MISSING = object()
FUZZED = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(folder, fields):
    """The error of loading a checkpoint whose config.json holds `fields`, or `None` if the model works."""
    (folder / "config.json").write_text(json.dumps(fields))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        model, processor = load_checkpoint(folder)
    except ValueError as error:
        return str(error)
    finally:
        logging.set_verbosity(verbosity)
    assert works(model, processor), fields
    return None


def edited(fields, name, value):
    return {key: old for key, old in fields.items() if key != name} | ({} if value is MISSING else {name: value})


@pytest.fixture(scope="module")
def good(folder):
    return json.loads((folder / "good" / "config.json").read_text())


@pytest.fixture(scope="module")
def case(folder):
    return shutil.copytree(folder / "good", folder / "case")


FIELDS = sorted(tiny_config().to_dict())
READ = {*inspect.signature(SenerConfig.__init__).parameters, "id2label", "label2id", "dtype", "model_type"}


@pytest.mark.parametrize("field", [name if name in READ else pytest.param(name, marks=pytest.mark.slow)
                                   for name in FIELDS])  # fmt: skip
def test_every_field_missing_or_odd_is_named_or_the_model_works(case, good, field):
    for value in [MISSING, *ODD]:
        error = outcome(case, edited(good, field, value))
        assert error is None or field in error or BELONG in error, (field, value, error)


@given(field=st.sampled_from([*FIELDS, "torch_dtype", "num_labels", "unknown"]), value=VALUES)
@example(field="unknown", value=ODD)
@example(field="attention_window", value=65_536)
@settings(FUZZED, max_examples=150)
def test_any_value_of_any_field_is_named_or_the_model_works(case, good, field, value):
    error = outcome(case, edited(good, field, value))
    assert error is None or field in error or BELONG in error, (field, value, error)


NESTED = ["deberta-v3", "bert", "modernbert", "distilbert"]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NESTED)
def test_every_field_of_the_encoder_missing_or_odd_is_named_or_the_model_works(tmp_path, backbone):
    check_encoder_fields(write_checkpoint(tmp_path, backbone), [MISSING, *ODD])


def test_fields_of_the_encoder_that_would_fail_late_are_refused_early(tmp_path):
    """Found by the slow test above; each would end in a traceback, or take all memory, long after loading."""
    check_encoder_fields(write_checkpoint(tmp_path, "deberta-v3"), [10**9, 1, "x"], {
        "position_buckets", "max_position_embeddings", "max_relative_positions", "hidden_act", "hidden_dropout_prob",
        "layer_norm_eps", "chunk_size_feed_forward", "output_hidden_states", "num_hidden_layers", "pad_token_id",
        "id2label", "dtype",
    })  # fmt: skip


def check_encoder_fields(folder, values, names=None):
    good = json.loads((folder / "config.json").read_text())
    encoder = good["backbone_config"]
    for field in sorted(names or encoder):
        for value in values:
            error = outcome(folder, {**good, "backbone_config": edited(encoder, field, value)})
            assert error is None or "backbone_config" in error or BELONG in error, (field, value, error)


def test_fields_that_the_encoder_does_not_use_change_nothing():
    """A wrong label list of the encoder's own is no reason to refuse a model that never reads it."""
    config = tiny_config({**BACKBONES["bert"], "id2label": {"x": 1}, "output_hidden_states": "x", "dtype": "y"})
    assert config.backbone_config.to_dict() == tiny_config("bert").backbone_config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 15}, "backbone_config.hidden_size is 15: expected a multiple of num_attention_heads, 2"),
        ({"vocab_size": 0}, "backbone_config.vocab_size is 0: expected an integer from 1 to"),
        ({"pad_token_id": 60}, "backbone_config.pad_token_id is 60: expected a number of the vocabulary"),
        ({"hidden_act": "x"}, "backbone_config.hidden_act is 'x': expected an activation of transformers"),
        ({"hidden_dropout_prob": 7.0}, "backbone_config.hidden_dropout_prob is 7.0: expected a number from 0 to 1"),
        ({"layer_norm_eps": float("nan")}, "backbone_config.layer_norm_eps is nan: expected a number from 0"),
    ],
    ids=str,
)
def test_wrong_fields_of_the_encoder_are_named(fields, message):
    with pytest.raises(ValueError) as error:
        SenerConfig(backbone_config={**BACKBONES["bert"], **fields})
    assert message in str(error.value)
