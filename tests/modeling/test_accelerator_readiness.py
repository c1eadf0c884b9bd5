"""
Properties that make an accelerator fast, as far as a CPU shows them: no loop over chunks waits for the device, tensors
are made on the inputs' device, the size of chunks depends on the device.

A pass waits for the device whenever it reads a value from it: by `int()`, `bool()` and `.item()` of a tensor, by
`nonzero`, and by a mask as an index, as shapes then depend on values. The tests count these operations on the CPU.
"""

from functools import partial

import pytest
import torch
from support.tiny_models import LABELS, batch, tiny_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import modeling_sener.modeling_sener
from modeling_sener.decoding import find_candidates
from modeling_sener.modeling_sener import CHUNK_SIZE, CHUNK_SIZE_ON_CPU


aten = torch.ops.aten
QUESTIONS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
             aten._unique2.default, aten.unique_dim.default}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
MAKERS = {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint,
          torch.randn, torch.tensor, torch.zeros}  # fmt: skip
BACKBONES = ["deberta-convolution", "bert", "modernbert"]
ONE_CHUNK, FEW, MANY = 10**6, 6, 2  # sizes of chunks: the head has one chunk, three or more, twice as many
PADDED, ALIKE = [100, 70, 3], [100, 100]


class Questions(TorchDispatchMode):
    """Counts questions: operations that wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        self.count += func in QUESTIONS or masked
        return func(*args, **(kwargs or {}))


def questions(compute) -> int:
    with Questions() as counted:
        compute()
    return counted.count


def model_and_inputs(backbone, chunk_size, lengths, **fields):
    model = tiny_model(backbone, chunk_size=chunk_size, attention_window=2, **fields)
    return model, batch(lengths, pad_token_id=model.config.backbone_config.pad_token_id or 0)


def chunks(model, inputs) -> int:
    with torch.no_grad():
        words, lengths = model.encode(**inputs)
        return len(list(model.logit_chunks(words, model.band(words, lengths))))


ASKING = {
    "int": lambda x: int(x.max()),
    "bool": lambda x: bool((x > 0).all()),
    "item": lambda x: x[0].item(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "set by a mask": lambda x: x.__setitem__(x > 1, x[:1]),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_each_kind_of_question_is_counted(ask):
    assert questions(lambda: ask(torch.arange(3))) == 1


@pytest.mark.parametrize("lengths", [PADDED, ALIKE], ids=str)
@pytest.mark.parametrize("triangles", ["upper", "both"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_more_chunks_ask_no_more_questions_in_inference(backbone, triangles, lengths):
    asked, made = [], []
    for chunk_size in (ONE_CHUNK, FEW, MANY):
        model, inputs = model_and_inputs(backbone, chunk_size, lengths, triangles=triangles)
        with torch.no_grad():
            asked.append(questions(partial(model, **inputs)))
        made.append(chunks(model, inputs))
    assert made[0] == 1 and made[1] >= 3 and made[2] >= 2 * made[1] - 1
    assert asked == [asked[0]] * 3


@pytest.mark.parametrize("lengths", [PADDED, ALIKE], ids=str)
@pytest.mark.parametrize("triangles", ["upper", "both"])
def test_finding_candidates_asks_one_question_per_chunk(triangles, lengths, monkeypatch):
    """A chunk waits for the device once, for its number of spans."""
    thresholds = torch.full((len(LABELS),), 0.5)
    decoded, beside = [], []

    def counted(*args):
        decoded[-1] += 1
        return find_candidates(*args)

    monkeypatch.setattr(modeling_sener.modeling_sener, "find_candidates", counted)
    for chunk_size in (ONE_CHUNK, FEW, MANY):
        model, inputs = model_and_inputs("bert", chunk_size, lengths, triangles=triangles)
        decoded.append(0)
        beside.append(questions(partial(model.find_candidates, **inputs, thresholds=thresholds)) - decoded[-1])
    assert decoded[0] == 1 and decoded[1] >= 3 and decoded[2] >= 2 * decoded[1] - 1
    assert beside == [beside[0]] * 3


def step(model, **inputs):
    model(**inputs).loss.backward()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("triangles", ["upper", "both"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_more_chunks_ask_no_more_questions_in_training(backbone, triangles, checkpointing):
    """Forward, backward and dropout."""
    asked = []
    for chunk_size in (ONE_CHUNK, MANY):
        model, inputs = model_and_inputs(backbone, chunk_size, PADDED, triangles=triangles)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        labels = torch.zeros_like(model(**inputs).logits)
        asked.append(questions(partial(step, model, labels=labels, **inputs)))
    assert asked[0] == asked[1]


class Makers(TorchFunctionMode):
    """Records the functions that make a tensor without a device."""

    def __init__(self):
        super().__init__()
        self.homeless = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in MAKERS and (kwargs or {}).get("device") is None:
            self.homeless.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunk_size", [ONE_CHUNK, MANY])
@pytest.mark.parametrize("attention", ["arrow", "sliding_window", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_tensor_is_made_on_the_device_of_the_inputs(backbone, attention, chunk_size):
    """A tensor that is made without a device lies on the CPU, which only fails if the inputs do not."""
    model, inputs = model_and_inputs(backbone, chunk_size, PADDED, triangles="both", attention=attention)
    labels, thresholds = torch.zeros_like(model(**inputs).logits), torch.full((len(LABELS),), 0.5)
    with Makers() as makers:
        model.find_candidates(**inputs, thresholds=thresholds)
        with torch.no_grad():
            model(**inputs)
        step(model.train(), **inputs, labels=labels)
    assert not makers.homeless


def test_an_accelerator_computes_larger_chunks():
    model = tiny_model("bert")
    assert model.chunk_size == CHUNK_SIZE_ON_CPU
    assert model.to("meta").chunk_size == CHUNK_SIZE
    assert tiny_model("bert", chunk_size=7).to("meta").chunk_size == 7
