"""train.py: it learns a toy corpus by heart, and saves it; checkpoints as a beginning; LoRA; fields."""

import json

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from support.toy import LABELS, as_raw, launch, python, toy_folder, toy_records, training_arguments, write_jsonl

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training import baseline_tagger as tagger
from training import train as training
from training.corpus.data import read_documents
from training.evaluation.candidates import score_spans
from training.evaluation.scoring import as_spans, score
from training.evaluation.thresholds import fit_thresholds
from training.fitting import loop
from training.fitting.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.fitting.fields import FieldError, parse_fields
from training.fitting.lora import add_lora, merged_state_dict
from training.fitting.run import build_model, build_optimizer
from training.fitting.run_data import DataFacts
from training.inference.extraction import extract


FACTS = DataFacts(LABELS, cross_blank_lines=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


FRESH = """
import json, sys
import torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
inputs = processor(texts, return_tensors="pt")
with torch.no_grad():
    found = processor.post_process(model(**inputs), inputs)
assert model.dtype == torch.float32, model.dtype
assert all(text[e["start"]:e["end"]] == e["text"] for text, entities in zip(texts, found) for e in entities)
print(json.dumps([[[e["start"], e["end"], e["label"]] for e in entities] for entities in found]))
"""


def test_a_toy_corpus_is_learnt_by_heart_saved_reloaded_and_scored(toy, tmp_path):
    done = launch("train.py", *training_arguments(toy, tmp_path / "out", "--num_epochs", "25", "--mask_share", "0.05",
                                         "--lora_rank", "0", "--save_dtype", "float16",
                                         "--biaffine_dropout", "0.1", "--span_dropout", "0.1"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    before_training = done.stdout[: done.stdout.index("epoch 1:")]
    assert "16 texts" in before_training and "trainable" in before_training
    assert "best F1 on dev: 1.0000" in done.stdout

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"

    done = launch("score.py", "--model", tmp_path / "out", "--data", toy / "both.jsonl", toy / "raw.jsonl",
                  "--output", tmp_path / "report.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["precision"] == result["recall"] == result["f1"] == 1.0
    assert set(result["per_label"]) == set(LABELS)
    assert result == json.loads((tmp_path / "report.json").read_text())

    done = python("-I", "-c", FRESH, tmp_path / "out", toy / "raw.jsonl", HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    gold = [sorted([e["start"], e["end"], e["label"]] for e in as_raw(record)["entities"]) for record in toy_records()]
    assert json.loads(done.stdout.splitlines()[-1]) == gold

    # Trained further with steps too small to change anything, it keeps its score.
    done = launch("train.py", *training_arguments(toy, tmp_path / "further", "--backbone", str(tmp_path / "out"),
                                         "--num_epochs", "1", "--learning_rate", "1e-9",
                                         "--head_learning_rate", "1e-9"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best F1 on dev: 1.0000" in done.stdout


def test_a_checkpoint_is_the_beginning_of_another_training(toy, tmp_path, capsys):
    """Known labels keep their outputs, in any order. The word pattern is kept; old thresholds are not."""
    sizes = {"span_window": 8, "biaffine_size": 16, "span_channels": 8}
    thresholds = {"Task": 0.2, "Odd": 0.3, "Material": 0.4}
    trained = SenerModel.from_backbone(toy / "bert", ["Task", "Odd", "Material"], threshold=thresholds, **sizes)
    tokenizer = SenerProcessor.from_backbone(toy / "bert", trained.config).tokenizer
    save_checkpoint(trained, SenerProcessor(tokenizer, trained.config, r"\S+"), tmp_path)

    given = ["--backbone", str(tmp_path), "--lora_rank", "0", "--span_layers", "2", "--attention_window", "128"]
    model, processor = build_model(parse_fields(training_arguments(toy, "out", *given)), FACTS)
    assert "of the labels, Material, Task kept; Method, Person new" in capsys.readouterr().out
    assert (model.config.labels, model.config.threshold, processor.word_pattern) == (LABELS, 0.5, r"\S+")
    inputs = processor(["Ada Lovelace trains ResNet-50 ."])
    with torch.no_grad():
        now, before = model.eval()(**inputs).logits, trained.eval()(**inputs).logits
    assert torch.equal(now[..., [LABELS.index("Task"), LABELS.index("Material")]], before[..., [0, 2]])
    for new in (LABELS.index("Method"), LABELS.index("Person")):
        assert not any(torch.equal(now[..., new], before[..., old]) for old in range(3))

    with pytest.raises(CheckpointError, match="its weights are of other sizes than the fields .*span_channels"):
        build_model(parse_fields(training_arguments(toy, "out", *given, "--span_channels", "16")), FACTS)


def test_a_checkpoint_of_other_triangles_is_refused(toy, tmp_path):
    """Without blocks, the weights have the right sizes, but mean something else."""
    trained = SenerModel.from_backbone(toy / "bert", LABELS, triangles="both", span_interaction="none")
    tokenizer = SenerProcessor.from_backbone(toy / "bert", trained.config).tokenizer
    save_checkpoint(trained, SenerProcessor(tokenizer, trained.config), tmp_path)
    given = training_arguments(toy, "out", "--backbone", str(tmp_path), "--triangles", "upper",
                               "--vertical_readout", "transposed")  # fmt: skip
    with pytest.raises(CheckpointError, match="triangles is 'upper', this checkpoint was trained with 'both'"):
        build_model(parse_fields(given), FACTS)


@pytest.mark.parametrize("command", [training, tagger], ids=["train", "baseline_tagger"])
def test_the_mean_of_the_last_epochs_weights_is_evaluated(toy, tmp_path, monkeypatch, command):
    module, name = (loop, "evaluate") if command is training else (command, "evaluate_tagger")
    evaluate, ends, evaluated = getattr(module, name), [], []

    def spy(run, *arguments):
        ends.append({name: tensor.double() for name, tensor in run.model.state_dict().items()})
        result = evaluate(run, *arguments)
        evaluated.append({name: tensor.clone() for name, tensor in run.eval_model.state_dict().items()})
        return {**result, "f1": len(ends) / 10}  # each epoch is better than those before

    monkeypatch.setattr(module, name, spy)
    fields = ["--num_epochs", "5", "--average_epochs", "3", "--lora_rank", "0", "--report_to", "none"]
    command.main(training_arguments(toy, tmp_path, *fields))
    stored, moved = load_file(tmp_path / "model.safetensors"), 0
    for epoch, weights in enumerate(evaluated):
        last = ends[max(0, epoch - 2) : epoch + 1]
        for name, tensor in weights.items():
            mean = sum(end[name] for end in last) / len(last)
            torch.testing.assert_close(tensor.double(), mean, rtol=0, atol=1e-6)
            moved = max(moved, (mean - ends[epoch][name]).abs().max().item())
    assert moved > 1e-3  # the mean differs from the last epoch
    assert all(torch.equal(stored[name], tensor) for name, tensor in evaluated[-1].items())
    kept = sorted(file.name for file in (tmp_path / "checkpoints").glob("weights_*"))
    assert kept == [
        f"weights_{epoch:04d}.safetensors" for epoch in (2, 3, 4, 5)
    ]  # one more, of the state before the newest


def test_with_lora_every_head_parameter_trains_and_is_saved(toy, tmp_path):
    fields = parse_fields(training_arguments(toy, tmp_path / "out", "--num_epochs", "3", "--lora_rank", "4"))
    torch.manual_seed(fields.seed)
    start, _ = build_model(fields, FACTS)
    set_seed(fields.seed)
    training.main(training_arguments(toy, tmp_path / "out", "--num_epochs", "3", "--lora_rank", "4"))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    model, _ = load_checkpoint(tmp_path / "out")
    assert set(saved) == set(model.state_dict()) and not [name for name in saved if "lora" in name or "base" in name]
    start = merged_state_dict(start)
    for name, tensor in saved.items():
        changed = not torch.equal(tensor, start[name])
        adapted = ".query." in name or ".value." in name
        assert changed == (not name.startswith("backbone.") or adapted), name


def test_lora_merges_into_the_same_scores_and_leaves_the_model_as_it_is(toy, tmp_path):
    fields = parse_fields(training_arguments(toy, tmp_path / "out", "--lora_rank", "4"))
    model, processor = build_model(fields, FACTS)
    model.eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = processor(["Ada Lovelace trains ResNet-50 .", "London"])
    (tmp_path / "out").mkdir()
    save_checkpoint(model, processor, tmp_path / "out")
    merged, _ = load_checkpoint(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_lora_needs_a_known_family():
    class Unknown(torch.nn.Module):
        config = type("Config", (), {"model_type": "strange"})

    model = torch.nn.Module()
    model.backbone = Unknown()
    with pytest.raises(ValueError, match="lora_rank is 8: no LoRA targets are known for 'strange'"):
        add_lora(model, 8, 16)


def test_the_encoder_has_its_own_learning_rate_and_biases_and_norms_no_decay(toy):
    fields = parse_fields(training_arguments(toy, "out", "--lora_rank", "0"))
    model, _ = build_model(fields, FACTS)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = set()
    for group in build_optimizer(model, model.backbone, fields).param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.add(name)
            assert group["lr"] == (2e-3 if name.startswith("backbone.") else 5e-3)
            is_bias_or_norm = name.endswith("bias") or "norm" in name.lower()
            assert group["weight_decay"] == (0.0 if is_bias_or_norm else 0.01), name
    assert seen == set(names.values())


def test_extraction_keeps_the_order_and_mixes_both_kinds_of_text(toy):
    model, processor = build_model(parse_fields(training_arguments(toy, "out", "--lora_rank", "0")), FACTS)
    texts = ["London", ["Ada", "Lovelace"], "", "Ada Lovelace in London " * 9, [], ["London"] * 30]
    together = extract(model, processor, texts, batch_size=2, threshold=0.0)
    for text, entities in zip(texts, together, strict=True):
        alone = extract(model, processor, [text], threshold=0.0)[0]
        assert [(e["start"], e["end"], e["label"]) for e in entities] == [
            (e["start"], e["end"], e["label"]) for e in alone
        ]


@pytest.mark.parametrize(
    "given, message",
    [
        (["--learning_rate", "fast"], "learning_rate is 'fast': expected a number"),
        (["--num_epochs", "0"], "num_epochs is 0: expected an integer from 1"),
        (["--num_epochs", "1.5"], "num_epochs is 1.5: expected an integer"),
        (["--mixed_precision", "fp8"], "mixed_precision is 'fp8': expected one of no, bf16, fp16, auto"),
        (["--mask_share", "1"], "mask_share is 1.0: expected a number from 0 to below 1"),
        (["--masked_words_weight", "0.1", "--mask_share", "0"], "masked_words_weight is 0.1: expected 0 where"),
        (["--backbone", ""], "no value for backbone"),
        (["--empty_window_share", "1.1"], "empty_window_share is 1.1: expected a number from 0 to 1"),
        (["--empty_window_share", "-0.1"], "empty_window_share is -0.1: expected a number from 0 to 1"),
        (["--empty_window_share", "nan"], "empty_window_share is nan: expected a number from 0 to 1"),
        (["--empty_window_share", "half"], "empty_window_share is 'half': expected a number"),
        (["--save_steps", "0"], "save_steps is 0: expected an integer from 1"),
        (["--learning_rate", "[1"], "--learning_rate '[1': not a value in YAML: while parsing a flow sequence"),
    ],
)
def test_a_wrong_field_is_named(toy, given, message):
    with pytest.raises(FieldError) as error:
        parse_fields(training_arguments(toy, "out", *given))
    assert message in str(error.value)


def test_a_backbone_that_cannot_be_loaded_is_named(toy, tmp_path):
    given = training_arguments(toy, tmp_path / "out", "--report_to", "none", "--backbone", str(tmp_path / "absent"))
    with pytest.raises(FieldError, match=r"(?s)backbone is '.*absent': .*--backbone FOLDER takes one from disk"):
        training.main(given)


@pytest.mark.parametrize("labels", [["NO"], ["1"], ["NO", "on", "1e3", "null"],
                                    ["License Grant", "Revenue/Profit Sharing"],
                                    ["@X", "a: b", "#1", "[z]"], ["人名", "größe"]])  # fmt: skip
def test_labels_are_read_as_they_are_written(tmp_path, toy, labels):
    given = training_arguments(toy, "out")
    assert parse_fields([*given, "--labels", ",".join(labels)]).labels == labels
    config = tmp_path / "run.yaml"
    config.write_text("labels:\n" + "".join(f"- {label}\n" for label in labels), encoding="utf-8")
    if "@X" in labels:
        with pytest.raises(FieldError, match="not valid YAML: .*'@' that cannot .*: put it into quotes"):
            parse_fields(["--config", str(config), *given])
        config.write_text("labels: " + json.dumps(labels))
    assert parse_fields(["--config", str(config), *given]).labels == labels


@pytest.mark.parametrize("name", ["2025-01-01", "7", "on", "@x"])
def test_names_of_folders_are_read_as_they_are_written(toy, name):
    fields = parse_fields(training_arguments(toy, name, "--backbone", name))
    assert (fields.output_dir, fields.backbone) == (name, name)


def test_a_word_pattern_in_yaml_is_a_string(tmp_path, toy):
    config = tmp_path / "run.yaml"
    config.write_text("word_pattern: 5\n")
    with pytest.raises(FieldError, match="^word_pattern is 5: expected a string$"):
        parse_fields(["--config", str(config), *training_arguments(toy, "out")])


def test_fields_come_from_yaml_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("backbone: a\ntrain_file: [b, 1.jsonl]\ndev_file: c\noutput_dir: d\nlearning_rate: 3e-4\n"
                      "mixed_precision: no\nlabels: [x, y]\nspan_window: 7\nthreshold: 0.25\n")  # fmt: skip
    fields = parse_fields(["--config", str(config), "--span_window", "9", "--labels", "p, q", "--resume"])
    assert (fields.train_file, fields.dev_file) == (["b", "1.jsonl"], ["c"])
    assert parse_fields(["--config", str(config), "--train_file", "x", "2"]).train_file == ["x", "2"]
    assert (fields.backbone, fields.learning_rate, fields.mixed_precision) == ("a", 3e-4, "no")
    assert (fields.labels, fields.resume, fields.model) == (["p", "q"], True, {"span_window": 9, "threshold": 0.25})


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rat: 1", "unknown field 'learning_rat'; did you mean 'learning_rate'?"),
        ("a: [", "not valid YAML"),
        ("- a", "expected fields (`name: value`)"),
    ],
)
def test_a_faulty_yaml_file_is_named(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(FieldError) as error:
        parse_fields(["--config", str(config)])
    assert str(error.value).startswith(str(config)) and message in str(error.value)


@pytest.mark.parametrize("holds", [True, False])
def test_a_model_crosses_blank_lines_if_its_training_data_does(holds, toy, tmp_path):
    text = "Ada Lovelace\n\nworked on the Analytical Engine ."
    spans = [(0, 12, "Person"), (0, 20, "Task") if holds else (14, 20, "Task")]
    entities = [{"start": start, "end": end, "label": label} for start, end, label in spans]
    data = write_jsonl(tmp_path / "lines.jsonl", [{"text": text, "entities": entities}])
    fields = ["--train_file", str(data), "--dev_file", str(data), "--num_epochs", "1", "--report_to", "none"]
    training.main(training_arguments(toy, tmp_path / "out", *fields))
    config = SenerConfig.from_pretrained(tmp_path / "out")
    assert config.cross_blank_lines is holds


def test_a_given_cross_blank_lines_comes_before_the_data(toy, tmp_path):
    training.main(training_arguments(toy, tmp_path, "--cross_blank_lines", "true", "--num_epochs", "1",
                                     "--report_to", "none"))  # fmt: skip
    assert SenerConfig.from_pretrained(tmp_path).cross_blank_lines is True


def test_thresholds_are_fitted_on_dev_and_saved_with_the_model(toy, tmp_path):
    training.main(training_arguments(toy, tmp_path, "--num_epochs", "2", "--fit_thresholds", "true"))
    model, processor = load_checkpoint(tmp_path)
    history = json.loads((tmp_path / "checkpoints" / "history.json").read_text())
    documents = read_documents(toy / "both.jsonl")
    texts, gold = [document.text for document in documents], [document.entities for document in documents]
    start = torch.full((model.config.num_labels,), 0.5, dtype=torch.float64)
    fitted = fit_thresholds(score_spans(model, processor, texts, start), documents, start.numpy(), model.config)
    assert model.config.threshold == dict(zip(model.config.labels, fitted.tolist(), strict=True))
    assert set(fitted) != {0.5}
    by_f1 = [score(gold, [as_spans(found) for found in extract(model, processor, texts, threshold=threshold)])["f1"]
             for threshold in (None, 0.5)]  # fmt: skip
    assert max(entry["f1"] for entry in history) == by_f1[0] > by_f1[1]
