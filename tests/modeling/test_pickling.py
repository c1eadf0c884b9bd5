"""Models, processors and pipelines go from process to process: pickle, copies, torch.save, a stable hash."""

import copy
import io
import json
import pickle

import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from support.fresh import run_fresh
from support.tiny import CORPUS, tiny_tokenizer
from support.tiny_models import BACKBONES, OTHERS, batch, randomize, tiny_config, tiny_model
from support.toy import python

from modeling_sener import SenerModel, SenerPipeline, SenerProcessor
from training.fitting.lora import add_lora


TEXTS = list(CORPUS[:3])


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return io.BytesIO(file.getvalue())


WAYS = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle 2": lambda model: pickle.loads(pickle.dumps(model, 2)),
    "copy.deepcopy": copy.deepcopy,
    "torch.save": lambda model: torch.load(saved(model), weights_only=False),
}


def inputs_of(name):
    return batch([200, 20], pad_token_id=BACKBONES[name].get("pad_token_id", 0))


def kinds(model):
    return [(name, type(module).__name__, type(module).__module__) for name, module in model.named_modules()]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_copy_is_the_same_model_of_its_own(name):
    model, inputs = tiny_model(name, chunk_size=40), inputs_of(name)
    with torch.no_grad():
        expected, hashed = model(**inputs).logits, Hasher.hash(model)
        for way, make in WAYS.items():
            made = make(model)
            assert kinds(made) == kinds(model) and type(made) is SenerModel, way
            assert list(made.state_dict()) == list(model.state_dict()), way
            assert torch.equal(made(**inputs).logits, expected) and Hasher.hash(made) == hashed, way  # in chunks, too
            next(made.parameters()).add_(1)
            assert torch.equal(model(**inputs).logits, expected), way
    made = copy.deepcopy(model).train()
    made(**inputs).logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_are_pickled(name="bert"):
    model = tiny_model(name)
    add_lora(model, 2, 4)
    made = pickle.loads(pickle.dumps(model))
    assert torch.equal(made(**inputs_of(name)).logits, model(**inputs_of(name)).logits)


@pytest.fixture(scope="module")
def extract():
    tokenizer = tiny_tokenizer("wordpiece")
    config = tiny_config({**BACKBONES["bert"], "vocab_size": len(tokenizer)}, threshold=0.6)
    return SenerPipeline(randomize(SenerModel(config)).eval(), SenerProcessor(tokenizer, config), device="cpu")


def test_a_pipeline_is_copied_and_its_hash_stays(extract):
    hashed, found = Hasher.hash(extract), extract(TEXTS)
    assert any(found) and Hasher.hash(extract) == hashed  # a call leaves nothing behind
    for make in WAYS.values():
        made = make(extract)
        assert made(TEXTS) == found and Hasher.hash(made) == hashed
    processor = pickle.loads(pickle.dumps(extract.processor))
    assert processor(TEXTS)["input_ids"].equal(extract.processor(TEXTS)["input_ids"])


def test_a_mapped_data_set_is_computed_once(extract, tmp_path):
    """The second run reads the cache, which is found by the hash of the function and all that it uses."""
    Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path)
    data = Dataset.load_from_disk(tmp_path)
    entities = lambda row: {"found": json.dumps(extract(row["text"]))}  # noqa: E731
    first, again = data.map(entities), data.map(entities)
    assert first.cache_files == again.cache_files and list(first["found"]) == list(again["found"])
    assert json.loads(first["found"][0]) == extract(TEXTS[0])


IN_ANOTHER_PROCESS = """
import json, sys
sys.path.insert(0, "tests")
import torch
from datasets.fingerprint import Hasher

folder, TEXTS = sys.argv[1], {texts!r}
made = {{}}
for name in sys.argv[2:]:
    model, inputs, expected = torch.load(folder + "/" + name + ".pt", weights_only=False)
    with torch.no_grad():
        made[name] = [torch.equal(model(**inputs).logits, expected), Hasher.hash(model)]
extract = torch.load(folder + "/extract.pt", weights_only=False)
print(json.dumps([made, extract(TEXTS), Hasher.hash(extract)]))
"""


@pytest.mark.slow
def test_another_process_loads_what_was_saved_and_hashes_it_the_same(extract, tmp_path):
    hashes, names = {}, [*OTHERS, "deberta-v3"]
    for name in names:
        model, inputs = tiny_model(name, chunk_size=40), inputs_of(name)
        with torch.no_grad():
            torch.save((model, inputs, model(**inputs).logits), tmp_path / f"{name}.pt")
        hashes[name] = [True, Hasher.hash(model)]
    torch.save(extract, tmp_path / "extract.pt")
    code = IN_ANOTHER_PROCESS.format(texts=TEXTS)
    done = python("-c", code, tmp_path, *names, PYTHONHASHSEED="7", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-4000:]
    made, found, hashed = json.loads(done.stdout.splitlines()[-1])
    assert made == hashes and found == json.loads(json.dumps(extract(TEXTS))) and hashed == Hasher.hash(extract)


PUBLISHED = (
    """
import json, multiprocessing, subprocess, sys
import torch
from transformers import pipeline

LOAD = """
    + repr("""
from transformers.dynamic_module_utils import init_hf_modules
init_hf_modules()
import json, sys, torch
extract = torch.load("extract.pt", weights_only=False)
print(json.dumps(extract(json.load(sys.stdin))))
""")
    + """
extract = pipeline("entity-extraction", model={folder!r}, trust_remote_code=True)
with multiprocessing.get_context("spawn").Pool(1) as pool:
    spawned = pool.map(extract, {texts!r})
torch.save(extract, "extract.pt")
done = subprocess.run([sys.executable, "-c", LOAD], input=json.dumps({texts!r}), capture_output=True, text=True)
assert done.returncode == 0, done.stderr
print(json.dumps([extract({texts!r}), spawned, json.loads(done.stdout)]))
"""
)


@pytest.mark.slow
def test_a_published_pipeline_works_in_a_spawned_process(extract, tmp_path):
    """Its classes come with the weights: the new process has to find them in transformers' cache of modules."""
    extract.model.save_pretrained(tmp_path / "model")
    extract.processor.save_pretrained(tmp_path / "model")
    printed = run_fresh(PUBLISHED.format(folder=str(tmp_path / "model"), texts=TEXTS), tmp_path)
    found, spawned, loaded = json.loads(printed.splitlines()[-1])
    assert any(found) and found == spawned == loaded and len(found) == len(TEXTS)
