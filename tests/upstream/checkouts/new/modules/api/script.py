"""The API, as it is since 2026."""

import asyncio
import json
import logging
import os
import socket
import threading
import traceback
from threading import Thread

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.requests import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import iterate_in_threadpool

import modules.api.completions as OAIcompletions
from modules import shared
from modules.models import load_model, unload_model
from modules.logging_colors import logger
from modules.text_generation import encode


def verify_api_key(authorization: str = Header(None)) -> None:
    expected_api_key = shared.args.api_key
    if expected_api_key and authorization != f"Bearer {expected_api_key}":
        raise HTTPException(status_code=401, detail="Unauthorized")


app = FastAPI()
check_key = [Depends(verify_api_key)]


@app.middleware("http")
async def validate_host_header(request: Request, call_next):
    if not shared.args.listen and request.headers.get("host", "").split(":")[0] not in [
        "localhost",
        "127.0.0.1",
    ]:
        return JSONResponse(status_code=400, content={"detail": "Invalid host header"})

    return await call_next(request)


def EventSourceResponse(generator):
    async def events():
        async for event in generator:
            yield f"data: {event['data']}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/v1/completions", dependencies=check_key)
async def openai_completions(request: Request, request_data: dict):
    if request_data.get("stream"):
        stop_event = threading.Event()

        async def generator():
            response = OAIcompletions.stream_completions(request_data, stop_event=stop_event)
            try:
                async for resp in iterate_in_threadpool(response):
                    yield {"data": json.dumps(resp)}

                yield {"data": "[DONE]"}
            finally:
                stop_event.set()
                response.close()

        return EventSourceResponse(generator())

    response = await asyncio.to_thread(OAIcompletions.completions, request_data)
    return JSONResponse(response)


@app.post("/v1/chat/completions", dependencies=check_key)
async def openai_chat_completions(request: Request, request_data: dict):
    response = await asyncio.to_thread(OAIcompletions.chat_completions, request_data)
    return JSONResponse(response)


@app.get("/v1/models", dependencies=check_key)
async def handle_models(request: Request):
    return JSONResponse({"data": [{"id": shared.model_name}]})


@app.post("/v1/internal/token-count", dependencies=check_key)
async def handle_token_count(request_data: dict):
    return JSONResponse({"length": len(encode(request_data["text"])[0])})


@app.post("/v1/internal/model/load", dependencies=check_key)
async def handle_load_model(request_data: dict):
    """
    Unload what is there first.
    """

    try:
        unload_model()
        shared.model, shared.tokenizer = load_model(request_data["model_name"])
        return JSONResponse(content="OK")
    except Exception:
        traceback.print_exc()
        raise HTTPException(status_code=500, detail="Failed to load the model.")


def find_available_port(starting_port):
    with socket.socket() as s:
        try:
            s.bind(("", starting_port))
        except OSError:
            return find_available_port(0)
        return s.getsockname()[1]


def run_server():
    port = int(os.environ.get("OPENEDAI_PORT", shared.args.api_port))
    port = find_available_port(port)
    server_addrs = ["0.0.0.0" if shared.args.listen else "127.0.0.1"]
    logger.info(f"API key: {shared.args.api_key}")

    logging.getLogger("uvicorn.error").propagate = False
    uvicorn.run(app, host=server_addrs, port=port, access_log=False)


def setup():
    if shared.args.nowebui:
        run_server()
    else:
        Thread(target=run_server, daemon=True).start()
