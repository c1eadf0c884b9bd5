"""Write a model card from measured scores (the report of `training/score.py`) and the model itself."""

import html
import json
import shlex
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_sener import SenerConfig, SenerModel
from modeling_sener.modeling_sener import wrapped_positions
from training.common.files import unreadable
from training.evaluation.scoring import RATIOS


TAGS = ["sener", "entity-extraction", "named-entity-recognition", "nested-entities", "long-text"]
COUNTS = ("texts", "words", "entities", "wider_than_window")
GROUPS = {"by_length": "words of the entity", "by_depth": "entities around it"}
NAMES = {"precision": "Precision", "recall": "Recall", "f1": "F1"}
CITATION = """```bibtex
@inproceedings{chen2025sener,
  title     = {Small Language Model Makes an Effective Long Text Extractor},
  author    = {Chen, Yelin and Zhang, Fanjin and Tang, Jie},
  booktitle = {AAAI},
  year      = {2025},
  note      = {arXiv:2502.07286}
}
```"""


def read_scores(path: str, config: SenerConfig) -> dict:
    """
    Read the report of `training/score.py --output`.

    Raises:
        ValueError: this is no such report, its model has other labels, or it was measured with other thresholds than
            the model's. The message names the file and the fault.
    """
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(unreadable(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(scores, dict):
        raise ValueError(f"{path}: expected the object that training/score.py writes")
    for name in (*RATIOS, *COUNTS, "interval", "macro", "per_label", *GROUPS, "overlap", "overlap_curve", "thresholds",
                 "data"):  # fmt: skip
        if name not in scores:
            raise ValueError(f"{path}: no field {name!r}: expected what training/score.py --output writes")
    try:
        check_values(scores)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not what training/score.py --output writes ({error!r})") from error
    measured = scores["thresholds"]
    if set(measured) != set(config.labels):
        raise ValueError(
            f"{path}: the report of a model with other labels: {', '.join(sorted(measured))}; this one has "
            f"{', '.join(sorted(config.labels))}"
        )
    own = config.threshold if isinstance(config.threshold, dict) else dict.fromkeys(config.labels, config.threshold)
    for label, threshold in own.items():
        if abs(measured[label] - threshold) > 1e-9:
            raise ValueError(
                f"{path}: measured with the threshold {measured[label]:g} for {label}, the model has {threshold:g}: "
                "run training/score.py without --threshold"
            )
    return scores


def check_values(scores: dict) -> None:
    """
    Use every value that a card uses.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: a value is missing or of another type.
    """
    score_table(scores)
    overlap_scores(scores)
    for group in GROUPS:
        group_table(scores, group)
    fitting_note(scores)
    found_and_missed(scores)
    for number in (*scores["thresholds"].values(), *(scores[name] for name in COUNTS)):
        if not isinstance(number, (int, float)):
            raise TypeError(f"{number!r} is no number")
    if not isinstance(scores["data"], list) or not all(isinstance(file, str) for file in scores["data"]):
        raise TypeError(f"data is {scores['data']!r}: no list of files")


def build_card(
    repo: str, model: SenerModel, scores: dict, license: str, language: list[str], datasets: list[str], base_model: str
) -> ModelCard:
    """
    Build the card of a model.

    Args:
        scores: of `read_scores`.
        language: codes of languages.
        datasets: names of the training data, on the Hub or elsewhere.
        base_model: the encoder that training began with.
    """
    names = [Path(file).name for file in scores["data"]]
    files = ", ".join(names)
    results = [
        EvalResult(
            task_type="token-classification", task_name="Entity extraction",
            dataset_type=datasets[0], dataset_name=f"{datasets[0]} ({files})",
            metric_type=name, metric_name=f"{NAMES[name]} (micro; exact start, end and label)",
            metric_value=round(scores[name], 4),
        )
        for name in RATIOS
    ]  # fmt: skip
    data = ModelCardData(
        license=license, language=language, library_name="transformers", pipeline_tag="token-classification",
        base_model=base_model, tags=TAGS, datasets=datasets, metrics=list(RATIOS), model_name=repo.split("/")[-1],
        eval_results=results,
    )  # fmt: skip
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body(repo, model, scores, names, datasets, base_model)}")


def body(repo: str, model: SenerModel, scores: dict, names: list[str], datasets: list[str], base_model: str) -> str:
    config = model.config
    labels = ", ".join(map(escape, config.labels))
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"""
# {escape(repo.split("/")[-1])}

Finds {labels} in texts of any length, in one pass over the whole text: nested entities, too, with character offsets.
SeNER (Chen, Zhang, Tang, AAAI 2025) on the encoder {escape(base_model)}; {size:.0f}M parameters, `triangles:
{config.triangles}`, `span_window: {"null" if config.span_window is None else config.span_window}`.

## Use
```python
from transformers import pipeline

extract = pipeline("entity-extraction", model="{repo}", trust_remote_code=True)
extract("a long text")  # or a list of texts, or a generator: then results stream
```

An entity is `{{"start", "end", "text", "label", "score"}}`, and `text[start:end] == entity["text"]`. Options of the
call: `threshold` (a number, or one a label), `labels`, `allow_nested`. The repository's code is run on your machine:
with `revision="COMMIT"` it is the code that you have read.

## Training data
{", ".join(map(escape, datasets))}.

## Scores
On {scores["texts"]:,} texts ({escape(", ".join(names))}: {scores["words"]:,} words, {scores["entities"]:,} entities),
over exact (start, end, label), in per cent; in brackets 95 % intervals from a bootstrap of whole texts.

{score_table(scores)}

{overlap_scores(scores)}

{group_table(scores, "by_length")}

{group_table(scores, "by_depth")}
{fitting_note(scores)}
```
accelerate launch training/score.py --model {repo} --data {shlex.join(names)}
```

## Limits
{limits(model, scores)}

## Citation
{CITATION}
"""


def score_table(scores: dict) -> str:
    """The scores of each label and of all entities, exact and by overlap, as a Markdown table."""
    overlap = scores["overlap"]
    per_label = sorted(scores["per_label"].items())
    rows = [(escape(label), entry, overlap["per_label"][label]) for label, entry in per_label]
    rows += [("all (micro)", scores, overlap), ("mean of the labels (macro)", scores["macro"], overlap["macro"])]
    lines = ["| label | entities | precision | recall | F1 | F1 by overlap |", "|---|---|---|---|---|---|"]
    for name, entry, partial in rows:
        count = f"{entry['tp'] + entry['fn']:,}" if "tp" in entry else ""
        lines.append(f"| {' | '.join([name, count, *with_intervals(entry), with_intervals(partial)[-1]])} |")
    return "\n".join(lines)


def with_intervals(entry: dict) -> list[str]:
    """Precision, recall and F1 of an entry in per cent, each with its interval."""
    cells = []
    for ratio in RATIOS:
        value, low, high = (100 * number for number in (entry[ratio], *entry["interval"][ratio]))
        cells.append(f"{value:.1f} ({low:.1f}–{high:.1f})")
    return cells


def overlap_scores(scores: dict) -> str:
    """Say how partial matches score, at the model's thresholds and over all of them."""
    precision, recall, f1 = with_intervals(scores["overlap"])
    area, at_80 = scores["overlap_curve"]["area"], scores["overlap_curve"]["precision_at_80_recall"]
    reached = "recall of 80 % is not reached" if at_80 is None else f"precision at 80 % recall {100 * at_80:.1f}"
    return (
        "By overlap (the label is right, and at least half of the words of both spans together are common): "
        f"precision {precision}, recall {recall}, F1 {f1}; over all thresholds the area under the precision-recall "
        f"curve is {100 * area:.1f}, {reached}."
    )


def group_table(scores: dict, group: str) -> str:
    """The scores of each group that has an entity, gold or predicted, as a Markdown table."""
    lines = [f"| {GROUPS[group]} | entities | precision | recall | F1 |", "|---|---|---|---|---|"]
    for name, entry in scores[group].items():
        if not entry["tp"] + entry["fp"] + entry["fn"]:
            continue
        count = f"{entry['tp'] + entry['fn']:,}"
        lines.append(f"| {' | '.join([escape(name), count, *with_intervals(entry)])} |")
    return "\n".join(lines)


def fitting_note(scores: dict) -> str:
    """A note if thresholds were fitted on the scored texts, which makes scores look better than they are."""
    before = scores.get("before_fitting")
    if before is None:
        return ""
    return (
        "\nThe thresholds were fitted on these very texts, so that the scores are better than on others; before, F1 "
        f"was {100 * before['f1']:.1f}.\n"
    )


def limits(model: SenerModel, scores: dict) -> str:
    """List the limits of the model and of the scores."""
    config, lines = model.config, []
    if config.span_window is not None:
        lines.append(
            f"An entity of more than {config.span_window + 1:,} words is out of its window and not found; of the "
            f"scored texts' entities {scores['wider_than_window']:,} are (they count as missed)."
        )
    found, missed = found_and_missed(scores)
    if found + missed:
        share = 100 * found / (found + missed)
        lines.append(f"Of {found + missed:,} entities inside another one it finds {share:.1f} %.")
    else:
        lines.append("The scored texts have no nested entities: how well it finds these is not measured.")
    if config.attention != "full":
        lines.append(f"A token of a word sees {config.attention_window:,} tokens on either side"
                     + (" and [CLS], which sees all." if config.attention == "arrow" else "."))  # fmt: skip
    if wrapped_positions(model.backbone, 1, torch.device("cpu")) is not None:
        length = config.backbone_config.max_position_embeddings
        lines.append(f"Learned positions end after about {length:,} tokens and start again there.")
    lines.append("The scores hold for texts like those scored; other kinds and languages were not measured.")
    return "\n".join(f"- {line}" for line in lines)


def found_and_missed(scores: dict) -> tuple[int, int]:
    """Count the gold entities inside another one that were found, and those that were missed."""
    nested = [entry for depth, entry in scores["by_depth"].items() if depth != "0"]
    return sum(entry["tp"] for entry in nested), sum(entry["fn"] for entry in nested)


def escape(text: str) -> str:
    """Escape text so that Markdown shows it literally, also in a table."""
    for mark in "\\`*_[]|#":
        text = text.replace(mark, "\\" + mark)
    return html.escape(" ".join(text.split()), quote=False)
