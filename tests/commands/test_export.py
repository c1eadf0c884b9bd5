"""export.py: the exported program gives the scores of the model for any texts, and runs without this repository."""

import json

import pytest
import torch
from support.fresh import run_fresh
from support.tiny import CORPUS, tiny_tokenizer
from support.tiny_models import BACKBONES, batch, tiny_model

from modeling_sener import SenerPipeline, SenerProcessor
from modeling_sener.band import Band
from training.common.files import WriteError
from training.common.start import run
from training.export import export, main


BATCHES = ([150, 90], [300], [40, 30, 20], [3], [64, 5], [700, 128, 65, 2])  # in tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone, fields",
    [
        ("bert", {}),
        ("deberta-v3", {}),
        ("deberta-v3", {"vertical_readout": "transposed", "attention": "sliding_window"}),
        ("modernbert", {"attention": "full", "span_window": 100}),
        ("electra", {"triangles": "upper"}),
        ("roberta", {"span_interaction": "none"}),
    ],
)
def test_program_equals_model(backbone, fields):
    model = tiny_model(backbone, chunk_size=64, **fields)  # most texts are longer than a chunk
    program = export(model).module(check_guards=False)
    pad = model.config.backbone_config.pad_token_id or 0
    for lengths in BATCHES:
        inputs = batch(lengths, pad_token_id=pad)
        with torch.no_grad():
            expected, found = model(**inputs).logits, program(**inputs)
        words, counts = expected.shape[1], inputs["word_index"].amax(dim=1)
        assert found.shape[:2] == inputs["input_ids"].shape
        valid = Band.of(counts, model.config.span_window, model.config.triangles).mask(slice(0, words))
        found = found[:, :words]
        torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("triangles", ["both", "upper"])
def test_a_band_as_wide_as_the_text_is_refused(triangles):
    with pytest.raises(ValueError, match="span_window is None"):
        export(tiny_model("bert", span_window=None, triangles=triangles))


LOAD = """
import json
from types import SimpleNamespace
import torch
from transformers import AutoProcessor

processor = AutoProcessor.from_pretrained({folder!r}, trust_remote_code=True)
program = torch.export.load({file!r}).module(check_guards=False)
for texts in {batches!r}:
    inputs = processor(texts)
    print(json.dumps(processor.post_process(SimpleNamespace(logits=program(**inputs)), inputs)))
"""


@pytest.mark.slow
def test_loaded_without_the_code_it_finds_the_same_entities(tmp_path, capsys):
    tokenizer = tiny_tokenizer("wordpiece")
    model = tiny_model({**BACKBONES["bert"], "vocab_size": len(tokenizer)})
    model.save_pretrained(tmp_path / "model")
    processor = SenerProcessor(tokenizer, model.config)
    processor.save_pretrained(tmp_path / "model")
    file = tmp_path / "sener.pt2"
    main(["--model", str(tmp_path / "model"), "--output", str(file)])
    assert "sener.pt2: " in capsys.readouterr().out
    batches = [list(CORPUS), [" ".join(CORPUS * 4)], ["Ada", ""]]
    printed = run_fresh(LOAD.format(folder=str(tmp_path / "model"), file=str(file), batches=batches), tmp_path)
    extract = SenerPipeline(model=model, processor=processor)
    found = [json.loads(line) for line in printed.splitlines()]
    for texts, per_text in zip(batches, found, strict=True):
        for entities, expected in zip(per_text, extract(texts), strict=True):
            assert [{**e, "score": 0} for e in entities] == [{**e, "score": 0} for e in expected]
            assert [e["score"] for e in entities] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert sum(len(entities) for per_text in found for entities in per_text) > 10


@pytest.mark.parametrize("name", ["sener.onnx", "no-folder/sener.pt2"])
def test_a_file_that_cannot_be_written_is_refused_at_once(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(lambda: main(["--model", "nobody/nothing", "--output", str(tmp_path / name)]))
    assert end.value.code == 1 and name in capsys.readouterr().err


def test_a_full_disk_is_named_and_the_older_program_stays(tmp_path, monkeypatch):
    def fails_half_way(program, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch.export, "save", fails_half_way)
    monkeypatch.setattr("training.export.export", lambda model: None)
    monkeypatch.setattr("training.export.load_checkpoint", lambda name: (None, None))
    output = tmp_path / "model.pt2"
    output.write_bytes(b"older")
    with pytest.raises(WriteError, match=rf"^{output}: cannot be written \(.* bytes are free\)$"):
        main(["--model", "user/name", "--output", str(output)])
    assert output.read_bytes() == b"older" and [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
