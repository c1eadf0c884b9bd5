"""
SeNER's scores as a metric of the `evaluate` library: `evaluate.load("training/metric")`.

    metric = evaluate.load("training/metric")
    metric.compute(predictions=extract(texts), references=gold)["f1"]
"""

import datasets
import evaluate

from training.scoring import as_spans, score


DESCRIPTION = """
Precision, recall and F1 of entities by set of (document, start, end, label): micro, macro and per label, with 95 %
intervals by a bootstrap of whole documents. Spans may nest, and one span may have several labels.
"""
INPUTS = """
Args:
    predictions: for each document a list of {"start", "end", "label"}, as the pipeline returns them; what else it has
        (text, score) is not looked at.
    references: the gold entities of each document, in the same form and order.

Returns:
    What `training.scoring.score` returns: `precision`, `recall`, `f1` (fractions), `tp`, `fp`, `fn`, `interval`,
    `macro`, `per_label`.
"""


def _bare(entities: list[dict]) -> list[dict]:
    """Without what scoring does not look at, and `evaluate` does not accept."""
    return [{key: entity[key] for key in ("start", "end", "label")} for entity in entities]


class EntityScores(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        entity = {"start": datasets.Value("int64"), "end": datasets.Value("int64"), "label": datasets.Value("string")}
        features = datasets.Features({"predictions": [entity], "references": [entity]})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Add the entities of several documents."""
        super().add_batch(predictions=[_bare(each) for each in predictions],
                          references=[_bare(each) for each in references], **kwargs)  # fmt: skip

    def add(self, *, prediction=None, reference=None, **kwargs) -> None:
        """Add the entities of one document."""
        super().add(prediction=_bare(prediction), reference=_bare(reference), **kwargs)

    def _compute(self, predictions: list[list[dict]], references: list[list[dict]]) -> dict:
        return score([as_spans(entities) for entities in references], [as_spans(entities) for entities in predictions])
