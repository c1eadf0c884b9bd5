"""
Serve extraction over HTTP: a minimal example to build on.

    SENER_MODEL=my-model uvicorn training.serve:app --limit-concurrency 64
    curl localhost:8000/extract -H 'Content-Type: application/json' -d '{"texts": ["We train ResNet-50."]}'
"""

import os
from contextlib import asynccontextmanager
from threading import Lock
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field
from transformers import pipeline

import modeling_sener  # noqa: F401  by which a folder without a copy of the code loads


MAX_BYTES = 2_000_000  # of a request
one_at_a_time = Lock()  # a batch uses every core, or the accelerator


def encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which no answer can hold") from error
    return text


class Texts(BaseModel):
    texts: list[Annotated[str, AfterValidator(encodable)]] = Field(min_length=1, max_length=64)
    threshold: float | None = Field(None, ge=0, le=1)


@asynccontextmanager
async def load_model(app: FastAPI):
    model = os.environ.get("SENER_MODEL", "modeling_sener")
    app.state.extract = pipeline("entity-extraction", model=model, trust_remote_code=True)
    yield


app = FastAPI(title="SeNER", lifespan=load_model)


@app.middleware("http")
async def limit_size(request: Request, call_next):
    if request.method == "POST" and int(request.headers.get("content-length", MAX_BYTES + 1)) > MAX_BYTES:
        return JSONResponse({"detail": f"a request of more than {MAX_BYTES:,} bytes, or of no stated length"}, 413)
    return await call_next(request)


@app.exception_handler(RequestValidationError)
async def refuse(request: Request, error: RequestValidationError):
    """Answer without the input, which FastAPI would send back: not all of it can be encoded as JSON."""
    faults = [{name: fault[name] for name in ("type", "loc", "msg")} for fault in error.errors()]
    return JSONResponse({"detail": faults}, 422)


@app.post("/extract")
def extract_texts(given: Texts) -> list[list[dict]]:
    """The entities of each text: start, end (exclusive, in characters), text, label, score."""
    with one_at_a_time:
        return app.state.extract(given.texts, threshold=given.threshold, batch_size=8)
