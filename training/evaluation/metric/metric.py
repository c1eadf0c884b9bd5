"""
Offer SeNER's scores as a metric of the `evaluate` library: `evaluate.load("training/evaluation/metric")`.

    metric = evaluate.load("training/evaluation/metric")
    metric.compute(predictions=extract(texts), references=gold)["f1"]
"""

import datasets
import evaluate

from modeling_sener.gold import trim
from training.evaluation.overlap import curve, match_overlap, touched_words
from training.evaluation.scoring import Entity, as_spans, match, summarise


DESCRIPTION = """
Precision, recall and F1 over sets of (document, start, end, label): micro, macro and per label, with 95 % intervals by
a bootstrap of whole documents. The same by overlap: an entity is right if it is paired with a gold one of its label
whose words have a Jaccard index of at least 1/2 with its own. Spans may nest, and one span may have several labels.
"""
INPUTS = """
Args:
    predictions: for each document a list of {"start", "end", "label"}, as the pipeline returns them, with or without
        "score"; other keys (text) are ignored.
    references: the gold entities of each document, in the same form and order.
    words (optional): for each document the (start, end) of its words, as `processor.split_words(text)` returns them;
        the scores by overlap are then those of `training/score.py`. Without words, overlap is counted in the units of
        `start` and `end`: words for documents of words, characters for raw text.
    texts (optional): the documents, strings or lists of words: with them white space around entities, gold or
        predicted, is trimmed, as in training and `training/score.py`.

Returns:
    The dict of `evaluation.scoring.score`: `precision`, `recall`, `f1` (fractions), `tp`, `fp`, `fn`, `interval`,
    `macro`, `per_label`; with `overlap`: the same by overlap. If every prediction has a score, also `overlap_curve`,
    the dict of `evaluation.overlap.curve`; with `texts`, also `trimmed`: the number of entities with white space
    around them. The curve ends at the lowest predicted score: extract with a low threshold to see more of it.
"""


def _bare(entities: list[dict]) -> list[dict]:
    """The entities without other keys: scoring ignores them, and `evaluate` does not accept them."""
    return [{key: entity[key] for key in ("start", "end", "label")} for entity in entities]


def _scored(entities: list[dict]) -> list[dict]:
    """`_bare` with the score, or `None` for an entity without one."""
    return [bare | {"score": entity.get("score")} for bare, entity in zip(_bare(entities), entities, strict=True)]


def _by_score(entities: list[dict]) -> dict[Entity, float]:
    """The score of each entity; the highest one if it occurs several times."""
    ascending = sorted(entities, key=lambda entity: entity["score"])
    return dict(zip(as_spans(ascending), (entity["score"] for entity in ascending), strict=True))


def _trimmed(texts: list, documents: list[list[dict]], name: str) -> list[list[dict]]:
    """The entities of each document without white space around them."""
    if len(texts) != len(documents):
        raise ValueError(f"texts has {len(texts)} documents, {name} {len(documents)}: give each its own")
    result = []
    for number, (text, entities) in enumerate(zip(texts, documents, strict=True)):
        result.append([])
        for entity in entities:
            start, end = trim(text, entity["start"], entity["end"])
            if start == end:
                place = f"[{entity['start']}, {entity['end']})"
                raise ValueError(f"{name}[{number}]: {place} of the text is white space alone: remove it")
            result[-1].append(entity | {"start": start, "end": end})
    return result


class EntityScores(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        entity = {"start": datasets.Value("int64"), "end": datasets.Value("int64"), "label": datasets.Value("string")}
        scored = entity | {"score": datasets.Value("float64")}
        features = datasets.Features({"predictions": [scored], "references": [entity]})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", inputs_description=INPUTS, features=features)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Add the entities of several documents."""
        super().add_batch(predictions=[_scored(each) for each in predictions],
                          references=[_bare(each) for each in references], **kwargs)  # fmt: skip

    def add(self, *, prediction=None, reference=None, **kwargs) -> None:
        """Add the entities of one document."""
        super().add(prediction=_scored(prediction), reference=_bare(reference), **kwargs)

    def _compute(self, predictions: list[list[dict]], references: list[list[dict]], words: list | None = None,
                 texts: list | None = None) -> dict:  # fmt: skip
        given = [*references, *predictions]
        if texts is not None:
            references = _trimmed(texts, references, "references")
            predictions = _trimmed(texts, predictions, "predictions")
        gold = [as_spans(entities) for entities in references]
        outcomes = match(gold, [as_spans(entities) for entities in predictions])
        result = summarise(outcomes, {})
        result["overlap"] = summarise(match_overlap(outcomes, *touched_words(outcomes, words)), {})
        if texts is not None:
            pairs = zip(given, [*references, *predictions], strict=True)
            result["trimmed"] = sum(a != b for before, after in pairs for a, b in zip(before, after, strict=True))
        if all(entity["score"] is not None for entities in predictions for entity in entities):
            result["overlap_curve"] = curve(gold, [_by_score(entities) for entities in predictions], words)
        return result
