"""
Extraction over HTTP, to start from: texts in, entities out.

    SENER_MODEL=my-model uvicorn training.serve:app
    curl localhost:8000/extract -H 'Content-Type: application/json' -d '{"texts": ["We train ResNet-50."]}'
"""

import os
from contextlib import asynccontextmanager
from threading import Lock

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from transformers import pipeline


MAX_BYTES = 2_000_000  # of a request, and so of what one holds in memory
one_at_a_time = Lock()  # a batch uses every core, or the accelerator


class Texts(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=64)
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


@app.post("/extract")
def extract(given: Texts) -> list[list[dict]]:
    """For each text its entities: start, end (exclusive, in characters), text, label, score."""
    with one_at_a_time:
        return app.state.extract(given.texts, threshold=given.threshold, batch_size=8)
