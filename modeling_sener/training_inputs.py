"""Texts with gold entities to what a model learns from: labels, training windows, batches of them."""

import numpy as np
import torch

from .band import batch_labels, fits
from .gold import Gold, Notes, covering_words, read_gold
from .texts import check_strings, check_words, is_one_text
from .tokenization import pad_inputs
from .windows import EncodedDocument, cut_windows


LEAST_TOKENS = 8  # of a training window


class TrainingInputs:
    """Part of [`SenerProcessor`]: the inputs of training."""

    def band_labels(self, inputs, gold: list[Gold]) -> torch.Tensor:
        """The targets of whole texts (B, N, W, R); warns of entities that were changed or cannot be learnt."""
        config, notes, spans = self.config, Notes(), []
        for own, text, offsets in zip(gold, inputs.texts, inputs.word_offsets, strict=True):
            covering = covering_words(offsets, own.entities)
            notes.add(own, covering, text, config)
            spans.append([(first, last, config.label2id[label]) for first, last, label in covering.entities
                          if fits(first, last, config.span_window)])  # fmt: skip
        notes.warn()
        lengths = [len(offsets) for offsets in inputs.word_offsets]
        return batch_labels(spans, lengths, config.span_window, config.triangles, config.num_labels)

    def training_windows(
        self, texts, entities, max_tokens: int | None = None, is_split_into_words: bool = False
    ) -> list[dict]:
        """
        Make the examples of a `Trainer`, whose `data_collator` is `collate`.

        A span is learnt as the words that it touches, without white space around it. What is changed, or cannot be
        learnt (an entity wider than the span window, say), is counted in one warning.

        Args:
            texts: as for a call.
            entities: a list of `{"start", "end", "label"}` for each text; for one text, its list. Offsets count
                characters (words, for lists of words); `end` is exclusive. A `text` is compared, if there is one;
                other keys are ignored.
            max_tokens: cut texts into overlapping windows of at most this many tokens, so that each entity that fits
                is whole in one; `None` for whole texts. Memory grows with the tokens of a batch, linearly.

        Returns:
            Windows: `input_ids` and `word_index` (see a call), and `labels`: `[first word, last word + 1, label]` of
            each entity, the label as a number. A text without words gives none.

        Raises:
            TypeError, ValueError: as for a call.
        """
        _check_max_tokens(max_tokens)
        is_single = is_one_text(texts, is_split_into_words)
        texts = check_words(texts) if is_split_into_words else check_strings(texts)
        gold, notes, windows = read_gold(entities, texts, self.config.labels, is_single), Notes(), []
        for text, own in zip(texts, gold, strict=True):
            encoded = EncodedDocument.of(self([text], is_split_into_words=is_split_into_words), own.entities)
            notes.add(own, encoded, text, self.config)
            cut, without_window, cut_words = cut_windows(
                encoded, max_tokens, self.config.span_window, self.config.label2id
            )
            notes["entities fit no training window; raise max_tokens"] += without_window
            notes["words have more tokens than max_tokens; their first tokens are used"] += cut_words
            notes["texts have no words"] += not cut
            windows += [window.as_example() for window in cut]
        notes.warn()
        return windows

    def collate(self, windows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Pad some of the `training_windows`: the inputs and `labels` of the model, as of a call. The labels are int8, so
        that they can hold the -100 with which a `Trainer` pads them for `compute_metrics`.
        """
        ids, index = ([torch.as_tensor(window[name]) for window in windows] for name in ("input_ids", "word_index"))
        if any(tokens.dim() != 1 for tokens in ids):
            raise ValueError("a window's input_ids have several rows: pass windows of `training_windows`")
        spans = [np.asarray(window["labels"], dtype=np.int64).reshape(-1, 3).tolist() for window in windows]
        config, lengths = self.config, [int(words.max()) for words in index]
        labels = batch_labels(spans, lengths, config.span_window, config.triangles, config.num_labels)
        return {**pad_inputs(ids, index, self.tokenizer.pad_token_id), "labels": labels.to(torch.int8)}


def _check_max_tokens(value) -> None:
    if value is not None and not (isinstance(value, int) and value >= LEAST_TOKENS):
        raise ValueError(f"max_tokens is {value!r}: expected an integer from {LEAST_TOKENS}, or None for whole texts")
