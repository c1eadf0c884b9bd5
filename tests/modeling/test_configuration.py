"""Every field of SenerConfig is validated, read by the code, and survives a round trip."""

import ast
import inspect
import json
from pathlib import Path

import pytest
from support.tiny_models import BACKBONES, LABELS, tiny_config
from transformers import AutoConfig

import modeling_sener
from modeling_sener.configuration_sener import SenerConfig


FIELDS = [name for name in inspect.signature(SenerConfig.__init__).parameters if name not in ("self", "kwargs")]
NOT_AN_INTEGER = [0, -1, 1.5, "8", None, True]
NOT_A_CHOICE = ["arow", "", None, 1, True]
NOT_A_DROPOUT = [-0.1, 1.0, 1.5, "0.1", None, True, float("nan")]
NOT_A_BOOLEAN = [0, 1, "true", None]
WRONG = {
    "backbone_config": [{"hidden_size": 8}, {"model_type": "no-such-encoder"}, {"model_type": 3}, "bert", 7],
    "attention": NOT_A_CHOICE,
    "attention_window": NOT_AN_INTEGER,
    "log_n_scaling": NOT_A_BOOLEAN,
    "span_window": [value for value in NOT_AN_INTEGER if value is not None],
    "biaffine_size": NOT_AN_INTEGER,
    "span_channels": [*NOT_AN_INTEGER, 7],
    "span_layers": [value for value in NOT_AN_INTEGER if value != 0],
    "span_interaction": NOT_A_CHOICE,
    "triangles": NOT_A_CHOICE,
    "vertical_readout": [value for value in NOT_A_CHOICE if value is not None],
    "triangle_mean": NOT_A_CHOICE,
    "labels_per_span": NOT_A_CHOICE,
    "biaffine_dropout": NOT_A_DROPOUT,
    "span_dropout": NOT_A_DROPOUT,
    "threshold": [
        -0.1, 1.1, "0.5", None, True, float("nan"), {}, {"Method": 0.5}, [0.5],
        dict.fromkeys([*LABELS, "Other"], 0.5), dict.fromkeys(LABELS, 2), dict.fromkeys(LABELS, "0.5"),
    ],
    "allow_nested": NOT_A_BOOLEAN,
    "cross_blank_lines": NOT_A_BOOLEAN,
    "chunk_size": [value for value in NOT_AN_INTEGER if value is not None],
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_wrong_values_to_try(field):
    assert WRONG[field]


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values], ids=str)
def test_a_wrong_value_names_field_and_value(field, value):
    with pytest.raises(ValueError) as error:
        tiny_config(**{field: value}) if field != "backbone_config" else SenerConfig(backbone_config=value)
    text = str(error.value)
    shown = value.get("model_type") if field == "backbone_config" and isinstance(value, dict) else value
    assert field in text and repr(shown) in text


@pytest.mark.parametrize(
    "labels",
    [{}, {0: "a", 1: "a"}, {0: "a", 2: "b"}, {1: "a"}, {0: ""}, {0: 3}, {0: "a", 1: None}],
    ids=str,
)
def test_wrong_labels_are_named(labels):
    with pytest.raises(ValueError, match="label") as error:
        tiny_config(id2label=labels, label2id={label: i for i, label in labels.items()})
    assert repr(labels) in str(error.value)


def test_label2id_must_agree_with_id2label():
    with pytest.raises(ValueError, match="label2id"):
        tiny_config(label2id={"Method": 1, "Task": 0, "Material": 2})


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_read_outside_the_configuration(field):
    """A field that nothing reads does nothing. In the syntax tree, a read is `<something>config.field`."""
    found = []
    for path in Path(modeling_sener.__file__).parent.glob("*.py"):
        if path.name == "configuration_sener.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr == field:
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                found += [path.name] if owner.endswith("config") else []
    assert found, f"no module reads config.{field}"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_field_is_saved_and_loaded(backbone, tmp_path):
    changed = {
        "attention": "sliding_window", "attention_window": 9, "log_n_scaling": False, "span_window": 7,
        "biaffine_size": 11, "span_channels": 4, "span_layers": 3, "span_interaction": "cnn",
        "triangles": "upper", "vertical_readout": "transposed", "triangle_mean": "probability",
        "labels_per_span": "best",
        "biaffine_dropout": 0.1, "span_dropout": 0.3, "threshold": {"Method": 0.1, "Task": 0, "Material": 1},
        "allow_nested": False, "cross_blank_lines": False, "chunk_size": 64,
    }  # fmt: skip
    assert set(changed) == set(FIELDS) - {"backbone_config"}
    config = tiny_config(backbone, **changed)
    config.save_pretrained(tmp_path)
    again = SenerConfig.from_pretrained(tmp_path)
    for field, value in changed.items():
        assert getattr(again, field) == value, field
    assert again.labels == LABELS
    assert again.backbone_config.to_dict() == config.backbone_config.to_dict()
    assert type(again.backbone_config) is type(AutoConfig.for_model(BACKBONES[backbone]["model_type"]))
    saved = json.loads((tmp_path / "config.json").read_text())
    named = {name: saved[name] for name in ("auto_map", "custom_pipelines")}  # only a saved config names its code
    assert again.to_dict() == {**config.to_dict(), **named, "dtype": "float32"}


def test_no_span_window_is_saved_and_loaded(tmp_path):
    config = tiny_config(span_window=None)
    config.save_pretrained(tmp_path)
    assert SenerConfig.from_pretrained(tmp_path).span_window is None


def test_more_than_ten_labels_keep_their_order():
    names = [f"label{i}" for i in range(12)]
    config = tiny_config(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    assert SenerConfig.from_dict(json.loads(config.to_json_string())).labels == names
