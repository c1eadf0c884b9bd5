"""
Texts to the model's inputs (words, tokens), and its scores back to entities with character offsets.

B batch, T tokens, N words that have tokens, W columns of the band, R labels.
"""

import json
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

# Unused imports are for older releases of transformers: see modeling_sener.py.
from .band import fits  # noqa: F401
from .configuration_sener import AUTO_MAP, SenerConfig
from .decoding import Candidates, logit_candidates, select_all
from .gold import read_gold
from .texts import BLANK_LINE, check_strings, check_words, is_one_text
from .tokenization import (
    WORD_PATTERN,
    backbone_tokenizer,
    only_hub_options,
    optional_file,
    own_tokenizer,
    pad_inputs,
    without_surrogates,
    word_splitter,
)
from .training_inputs import TrainingInputs
from .windows import Window  # noqa: F401


PROCESSOR_FILE = "processor_config.json"


class SenerInputs(BatchEncoding):
    """
    The model's inputs, with the texts and offsets that `SenerProcessor.post_process` needs.

    Attributes:
        texts (`list`): the texts as they were given, strings or lists of words.
        word_offsets (`list[list[tuple[int, int]]]`): per text, word n (`word_index` n + 1) is `text[start:end]`;
            numbers of words if the text is a list of words.
    """

    def __init__(self, data: dict, texts: list, word_offsets: list):
        super().__init__(data)
        self.texts = texts
        self.word_offsets = word_offsets

    def __getstate__(self):  # BatchEncoding's own leaves the attributes out: a DataLoader's worker would lose them
        return {**super().__getstate__(), "texts": self.texts, "word_offsets": self.word_offsets}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.texts, self.word_offsets = state["texts"], state["word_offsets"]


class SenerProcessor(TrainingInputs, ProcessorMixin):
    r"""
    Turns texts into the inputs of a [`SenerModel`] and its outputs into entities.

    Args:
        tokenizer (`PreTrainedTokenizerFast`):
            The encoder's fast tokenizer. The processor keeps a copy that never truncates or pads by itself (MiniLM's
            would) and that treats each word as one that follows a space (RoBERTa's would not).
        config (`SenerConfig`): the labels, and the defaults of `post_process`.
        word_pattern (`str`): regular expression (Oniguruma) of a word; saved with the processor.
    """

    def __init__(self, tokenizer, config: SenerConfig, word_pattern: str = WORD_PATTERN):
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
            raise TypeError(f"SenerProcessor needs a fast tokenizer of transformers, got {type(tokenizer).__name__}")
        super().__init__(own_tokenizer(tokenizer))
        self.config = config
        self.word_pattern = word_pattern
        self._splitter = word_splitter(word_pattern)

    @classmethod
    def from_backbone(
        cls, name_or_folder: str, config: SenerConfig, word_pattern: str = WORD_PATTERN, **hub_options
    ) -> "SenerProcessor":
        """
        Make the processor of a new model on a pretrained encoder.

        Args:
            name_or_folder: the encoder's repository or folder.
            word_pattern: see the class.
            hub_options: `revision`, `token`, `cache_dir`, ... as for `from_pretrained`.
        """
        return cls(backbone_tokenizer(str(name_or_folder), only_hub_options(hub_options)), config, word_pattern)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "SenerProcessor":
        """
        Load the processor of a SeNER repository or folder: its tokenizer, `processor_config.json` and `config.json`.

        Raises:
            ValueError: `config.json` is that of another model, or a file of the tokenizer's or the processor's is
                missing or damaged.
            OSError: there is no such folder or repository, or no readable `config.json`.
        """
        name, options = str(pretrained_model_name_or_path), only_hub_options(kwargs)
        fields, _ = SenerConfig.get_config_dict(name, **options)
        found = fields.get("model_type") if isinstance(fields, dict) else None
        if found != SenerConfig.model_type:
            raise ValueError(f"{name} is not a SeNER checkpoint: its model_type is {found!r}")
        config = SenerConfig.from_pretrained(name, **options)
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **options)
        except Exception as error:  # tokenizers raises nothing more precise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(": ")
            raise ValueError(
                f"{name}: tokenizer.json or tokenizer_config.json is missing or damaged ({reason}): fetch it again"
            ) from error
        file = optional_file(name, PROCESSOR_FILE, options)
        if file is None:
            raise ValueError(f"{name}: {PROCESSOR_FILE} is missing: fetch it again")
        try:
            word_pattern = json.loads(Path(file).read_text(encoding="utf-8"))["word_pattern"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{name}: {PROCESSOR_FILE} is damaged ({type(error).__name__}: {error}): fetch it again"
            ) from error
        return cls(tokenizer, config, word_pattern)

    def save_pretrained(self, save_directory, **kwargs) -> list[str]:
        """
        Write `tokenizer.json`, `tokenizer_config.json` and `processor_config.json`; if the folder has no
        `config.json`, also that and the code that `AutoProcessor` loads.

        Returns:
            The files that were written.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend()
        files = [Path(file) for file in self.tokenizer.save_pretrained(folder)]
        # transformers 4 and 5 both know this class. Unlike DeBERTa's own, it keeps tokenizer.json's normalisation.
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        _write_json(folder / "tokenizer_config.json", settings)
        _write_json(folder / PROCESSOR_FILE, self.to_dict())
        files.append(folder / PROCESSOR_FILE)
        if not (folder / "config.json").exists():
            self.config.save_pretrained(folder)
            files += [folder / "config.json", *folder.glob("[!_]*.py")]
        return [str(file) for file in dict.fromkeys(files)]

    def to_dict(self) -> dict:
        """The content of `processor_config.json`."""
        return {
            "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]},
            "processor_class": type(self).__name__,
            "word_pattern": self.word_pattern,
        }

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "word_index"]

    def split_words(self, text: str) -> list[tuple[int, int]]:
        """Offsets (start, end) of the words of a text: word k is `text[start:end]`, in Python's code points."""
        return [offsets for _, offsets in self._splitter.pre_tokenize_str(without_surrogates(text))]

    def __call__(
        self, texts, return_tensors: str = "pt", is_split_into_words: bool = False, entities=None
    ) -> SenerInputs:
        """
        Args:
            texts: a string or any sequence of them (a list, a column of a data set, an array, a series); with
                `is_split_into_words`, a sequence of words or a sequence of those.
            return_tensors: "pt"; no other kind is made.
            entities: the gold entities, see `training_windows`.

        Returns:
            `input_ids`, `attention_mask` and `word_index` (the 1-based word of each token, 0 for special tokens and
            padding), each int64 of *Shape:* (B, T), padded on the right and never cut; with the attributes
            `texts` and `word_offsets`. A word without tokens (a control character, say) is left out of the count.
            With `entities` also `labels`, uint8 of *Shape:* (B, N, W, R), with which the model returns a loss.

        Raises:
            TypeError: something is not a string; says where.
            ValueError: there is no text, or a fault in `entities`; names the text, the entity and the field.
        """
        if return_tensors != "pt":
            raise ValueError(f'return_tensors is {return_tensors!r}: only "pt" is made')
        is_single = is_one_text(texts, is_split_into_words)
        texts = check_words(texts) if is_split_into_words else check_strings(texts)
        if is_split_into_words:
            offsets = [[(number, number + 1) for number in range(len(text))] for text in texts]
            words = [[without_surrogates(word) for word in text] for text in texts]
        else:
            found = [self._splitter.pre_tokenize_str(without_surrogates(text)) for text in texts]
            offsets = [[place for _, place in text] for text in found]
            words = [[word for word, _ in text] for text in found]
        encodings = self._backend().encode_batch(words, is_pretokenized=True)
        ids, index, word_offsets = [], [], []
        for encoding, places in zip(encodings, offsets, strict=True):
            numbers, kept = _number_words(encoding.word_ids)
            ids.append(torch.tensor(encoding.ids, dtype=torch.int64))
            index.append(torch.from_numpy(numbers))
            word_offsets.append([places[number] for number in kept])
        inputs = SenerInputs(pad_inputs(ids, index, self.tokenizer.pad_token_id), texts, word_offsets)
        if entities is not None:
            inputs["labels"] = self.band_labels(inputs, read_gold(entities, texts, self.config.labels, is_single))
        return inputs

    def post_process(self, outputs, inputs: SenerInputs, threshold=None, allow_nested=None, labels=None) -> list[list]:
        """
        Args:
            outputs: of the model, with `logits` (B, N, W, R).
            inputs: what the processor returned for them, on any device.
            threshold (`float` or `dict[str, float]`): score from which a span is accepted; a dict may name some of
                the labels. Defaults to the config's, as does what it leaves out.
            allow_nested (`bool`): accept a span inside another one; defaults to the config's.
            labels (`list[str]`): the labels to return; the others do not take part in conflicts. Defaults to all.

        Returns:
            Per text, in text order (start, end, label), `{"start", "end", "text", "label", "score"}`: characters (word
            numbers for a list of words), `end` exclusive, the score in 0..1.

        Raises:
            ValueError: an unknown label, a threshold outside of 0..1, inputs that are not the processor's or not of
                these outputs.
            FloatingPointError: the scores are not finite.
        """
        texts, word_offsets = _carried(inputs)
        logits, longest = outputs.logits, max(map(len, word_offsets))
        if len(logits) != len(texts) or logits.shape[1] < longest or logits.shape[-1] != len(self.config.labels):
            raise ValueError(
                f"outputs and inputs do not belong together: logits of shape {tuple(logits.shape)} for {len(texts)} "
                f"texts of up to {longest} words and {len(self.config.labels)} labels"
            )
        candidates = logit_candidates(
            logits,
            torch.tensor([len(offsets) for offsets in word_offsets]),
            self.thresholds(threshold, labels),
            triangles=self.config.triangles,
            triangle_mean=self.config.triangle_mean,
        )
        return self.entities(candidates, inputs, allow_nested)

    def allowed(self, candidates: Candidates, inputs: SenerInputs) -> Candidates:
        """
        Drop the candidates that hold a blank line, unless `cross_blank_lines`: white space is no token, so that the
        model does not see it. Word lists have no lines.
        """
        texts, word_offsets = _carried(inputs)
        if self.config.cross_blank_lines or not candidates.text.size:
            return candidates
        paragraphs = np.concatenate([_paragraphs(*each) for each in zip(texts, word_offsets, strict=True)])
        first = np.cumsum([0, *map(len, word_offsets)])[candidates.text]
        return candidates.take(paragraphs[first + candidates.start] == paragraphs[first + candidates.end - 1])

    def entities(self, candidates: Candidates, inputs: SenerInputs, allow_nested: bool | None = None) -> list[list]:
        """
        As `post_process`, from the candidates of `SenerModel.find_candidates`: for long texts, as it keeps no logits.

        Thresholds and labels were applied when the candidates were found.
        """
        texts, word_offsets = _carried(inputs)
        allow_nested = self.config.allow_nested if allow_nested is None else allow_nested
        candidates = self.allowed(candidates, inputs)
        found = select_all(candidates, len(texts), self.config.labels_per_span, allow_nested)
        return [self._entities(*each) for each in zip(texts, word_offsets, found, strict=True)]

    def thresholds(self, threshold=None, labels=None) -> torch.Tensor:
        """
        Merge the call's thresholds with the config's: *Shape:* (R,), float64, infinity for labels not asked for.

        Raises:
            ValueError: an unknown label, or a threshold that is no number of 0..1.
        """
        known = self.config.labels
        values = dict.fromkeys(known, 0.5)
        for given in (self.config.threshold, threshold):
            if given is not None:
                values |= given if isinstance(given, dict) else dict.fromkeys(known, given)
        if isinstance(labels, str):
            raise ValueError(f"labels is the string {labels!r}: expected a list of labels")
        labels = known if labels is None else list(labels)
        for label in [*values, *labels]:
            if label not in known:
                raise ValueError(f"unknown label {label!r}: the model has {', '.join(known)}")
        for label, value in values.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"threshold {value!r} for {label!r}: expected a number from 0 to 1")
        return torch.tensor([values[k] if k in labels else float("inf") for k in known], dtype=torch.float64)

    def _entities(self, text, offsets, found) -> list[dict]:
        entities = []
        fields = (found.start, found.end, found.label, found.score)
        for first, end, label, score in zip(*(field.tolist() for field in fields), strict=True):
            start, stop = offsets[first][0], offsets[end - 1][1]
            own = text[start:stop] if isinstance(text, str) else " ".join(text[start:stop])
            entity = {"start": start, "end": stop, "text": own, "label": self.config.labels[label], "score": score}
            entities.append(entity)
        return entities

    def _backend(self) -> Tokenizer:
        """The Rust tokenizer, its settings restored: a call of `self.tokenizer` may have changed them."""
        backend = self.tokenizer.backend_tokenizer
        # Changed only where it must be: before 0.23, tokenizers lets nobody do so while another thread encodes.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if not backend.encode_special_tokens:
            backend.encode_special_tokens = True  # "[SEP]" in a text is text
        return backend


def _carried(inputs) -> tuple[list, list]:
    """Read the texts and offsets that the processor's return value carries."""
    texts, word_offsets = getattr(inputs, "texts", None), getattr(inputs, "word_offsets", None)
    if texts is None or word_offsets is None:
        raise ValueError(
            "these inputs lack the texts and offsets that the processor's return value carries as attributes: pass "
            "that value itself (`inputs.to(device)` keeps them), not a dict made from it"
        )
    return texts, word_offsets


def _paragraphs(text: str | list[str], offsets: list[tuple[int, int]]) -> np.ndarray:
    """The number of blank lines before each word. *Shape:* (words,)."""
    lines = [match.start() for match in BLANK_LINE.finditer(text)] if isinstance(text, str) else []
    return np.searchsorted(np.array(lines, dtype=np.int64), np.array([start for start, _ in offsets], dtype=np.int64))


def _number_words(word_ids: list[int | None]) -> tuple[np.ndarray, list[int]]:
    """Count the words that have tokens: the 1-based word of each token (0: none), and the original number of each."""
    given = np.array([-1 if number is None else number for number in word_ids], dtype=np.int64)
    numbers = np.zeros_like(given)
    kept, place = np.unique(given[given >= 0], return_inverse=True)
    numbers[given >= 0] = place + 1
    return numbers, kept.tolist()


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
