"""
Load a checkpoint in an isolated interpreter and compare with the recorded outputs.

check_published.py runs this file in an interpreter of any versions that cannot import this repository. It needs only
Python, torch and transformers:

    python -I load_published.py REQUEST.json

The request: `source` (a folder, or a name in the Hub's cache), `recorded` (a file), `site` (a folder of packages, or
null), `read_only` (folders in which nothing may be written), `work` (a folder for saved files), `device_map` (whether
to check this alone). The last line printed is one JSON object: `versions`, `passed`, `failures` and `packages`.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Largest difference of a score (0..1) from the recorded one, which was computed in float32.
TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
REPOSITORY = ("modeling_sener", "training")


def forbid_network_and_writes(read_only, attempts):
    """
    Refuse all connections, and all writing below `read_only`, from now on and whatever the user's rights. Attempts are
    added to `attempts`, as libraries may ignore the error.
    """

    def refuse(event, arguments):
        if event in NETWORK:
            attempts.append(f"{event} {arguments[-1]!r}")
            raise OSError(f"no network here: {event}")
        if event == "os.mkdir":
            path = arguments[0]
        elif event == "open" and (set(arguments[1] or "") & set("wax+") or (arguments[2] or 0) & WRITING):
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, bytes)):  # else the descriptor of an open file
            path = os.path.abspath(os.fsdecode(path))
            if any(path == folder or path.startswith(folder + os.sep) for folder in read_only):
                attempts.append(f"{event} {path}")
                raise PermissionError(f"read-only: {path}")

    sys.addaudithook(refuse)


class Checks:
    """The methods named in `CHECKS` and `device_map` raise an error if a result differs from the recorded one."""

    def __init__(self, request):
        self.source, self.work = request["source"], Path(request["work"])
        self.recorded = json.loads(Path(request["recorded"]).read_text(encoding="utf-8"))
        self.texts = self.recorded["texts"]

    def load_model(self, source=None, dtype=None, **options):
        import torch
        import transformers

        if dtype is not None:
            # Before 4.56 the option was called `torch_dtype`.
            version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
            options["dtype" if version >= (4, 56) else "torch_dtype"] = getattr(torch, dtype)
        model, info = transformers.AutoModel.from_pretrained(
            source or self.source, trust_remote_code=True, output_loading_info=True, **options
        )
        wrong = {kind: sorted(names) for kind, names in info.items() if kind.endswith("_keys") and names}
        assert not wrong, f"weights do not fit: {wrong}"
        assert type(model).__name__ == "SenerModel" and not model.training, type(model)
        dtypes = {str(parameter.dtype) for parameter in model.parameters()}
        assert dtypes == {f"torch.{dtype or 'float32'}"}, f"loaded as {dtypes}"
        return model

    def load_processor(self, source=None):
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(source or self.source, trust_remote_code=True)

    def load_pipeline(self, source=None):
        from transformers import pipeline

        return pipeline("entity-extraction", model=source or self.source, trust_remote_code=True)

    def compare_model(self, source=None, dtype=None, **options):
        """Run the model on the texts: every span has the recorded score; in float32, the entities are equal, too."""
        import torch

        model = self.load_model(source, dtype, **options)
        processor = self.load_processor(source)
        inputs = processor(self.texts, return_tensors="pt").to(model.device)
        thresholds = torch.zeros(len(self.recorded["labels"]), dtype=torch.float64)
        found = model.find_candidates(**inputs, thresholds=thresholds)
        *columns, scores = (column.tolist() for column in found)
        *recorded, expected = self.recorded["every_span"]
        assert columns == recorded, "other spans"
        self.compare_scores(scores, expected, dtype or "float32")
        with torch.no_grad():
            outputs = model(**inputs)
        entities = processor.post_process(outputs, inputs)
        if dtype in (None, "float32"):
            self.compare_entities(entities)

    def compare_scores(self, found, recorded, dtype="float32"):
        differences = [abs(ours - theirs) for ours, theirs in zip(found, recorded)]  # noqa: B905 - of one length
        assert all(difference == difference for difference in differences), "a score is not a number"
        self.worst, allowed = max([self.worst, *differences]), TOLERANCE[dtype]
        assert self.worst <= allowed, f"scores differ by up to {self.worst:.2g}, {allowed:.2g} is allowed"

    def compare_entities(self, found):
        assert len(found) == len(self.texts), f"{len(found)} results for {len(self.texts)} texts"
        for text, ours, recorded in zip(self.texts, found, self.recorded["entities"]):  # noqa: B905
            assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in ours), text
            spans = [(entity["start"], entity["end"], entity["label"]) for entity in ours]
            expected = [tuple(span) for *span, _ in recorded]
            assert spans == expected, f"entities of {text!r}: {spans}, recorded were {expected}"
            self.compare_scores([entity["score"] for entity in ours], [score for *_, score in recorded])

    def alone(self):
        """The interpreter cannot import the repository."""
        seen = [name for name in REPOSITORY if importlib.util.find_spec(name) is not None]
        assert not seen, f"{', '.join(seen)} can be imported: this environment is not isolated"

    def config(self):
        """AutoConfig: the class and the recorded labels."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.source, trust_remote_code=True)
        assert type(config).__name__ == "SenerConfig", type(config)
        labels = [config.id2label[number] for number in range(len(config.id2label))]
        assert labels == self.recorded["labels"], labels

    def token_ids(self):
        """AutoProcessor: the recorded token ids and words."""
        inputs = self.load_processor()(self.texts, return_tensors="pt")
        for name in ("input_ids", "word_index"):
            found = inputs[name].tolist()
            for text, ours, recorded in zip(self.texts, found, self.recorded[name]):  # noqa: B905
                assert ours == recorded, f"{name} of {text!r}: {ours}, recorded were {recorded}"

    def model(self):
        """AutoModel: the recorded score of every span, and the entities by `post_process`."""
        self.compare_model()

    def pipeline(self):
        """pipeline: the recorded entities, one by one and in batches."""
        extract = self.load_pipeline()
        self.compare_entities(extract(self.texts))
        self.compare_entities(extract(self.texts, batch_size=2))

    def threads(self):
        """AutoProcessor: the recorded token ids from eight threads at once."""
        processor = self.load_processor()
        expected = [processor(text)["input_ids"].tolist() for text in self.texts]

        def compute(_):
            return all(processor(text)["input_ids"].tolist() == ids for text, ids in zip(self.texts, expected))  # noqa: B905

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(compute, range(400))), "a thread has other token ids"

    def float32(self):
        """dtype=torch.float32."""
        self.compare_model(dtype="float32")

    def float16(self):
        """dtype=torch.float16."""
        self.compare_model(dtype="float16")

    def bfloat16(self):
        """dtype=torch.bfloat16."""
        self.compare_model(dtype="bfloat16")

    def saved_again(self):
        """save_pretrained of the loaded pipeline: the same code, and a folder with the same results."""
        folder = self.work / "again"
        self.load_pipeline().save_pretrained(folder)
        code = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("[!_]*.py")}
        wrong = sorted(
            name for name in {*code, *self.recorded["code"]} if code.get(name) != self.recorded["code"].get(name)
        )
        assert not wrong, f"save_pretrained wrote other code than the repository's: {', '.join(wrong)}"
        self.compare_model(folder)
        self.compare_entities(self.load_pipeline(folder)(self.texts))

    def device_map(self):
        """device_map="auto"."""
        self.compare_model(device_map="auto")


CHECKS = (
    "alone",
    "config",
    "token_ids",
    "threads",
    "model",
    "pipeline",
    "float32",
    "float16",
    "bfloat16",
    "saved_again",
)


def main():
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    attempts, passed, failures = [], {}, []
    forbid_network_and_writes(request["read_only"], attempts)
    if request["site"]:
        sys.path.append(request["site"])
    checks, names = Checks(request), CHECKS
    if request["device_map"]:
        names = ("alone", "device_map") if importlib.util.find_spec("accelerate") else ()
    for name in names:
        try:
            checks.worst = 0.0
            getattr(checks, name)()
            passed[name] = checks.worst
        except Exception as error:
            traceback.print_exc()
            first = (str(error).strip() or "no message").splitlines()[0]
            failures.append(
                f"{name}: {first if isinstance(error, AssertionError) else f'{type(error).__name__}: {first}'}"
            )
    failures += [f"isolation: {attempt}" for attempt in dict.fromkeys(attempts)]
    packages = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
    versions = {"python": platform.python_version()}
    versions |= {name: packages[name] for name in ("torch", "transformers", "accelerate") if name in packages}
    print(json.dumps({"versions": versions, "passed": passed, "failures": failures, "packages": sorted(packages)}))


if __name__ == "__main__":
    main()
