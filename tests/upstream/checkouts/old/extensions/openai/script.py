"""The API, as it was an extension."""

import asyncio
import json
import logging
import os
import traceback
from threading import Thread

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.requests import Request
from fastapi.responses import JSONResponse, StreamingResponse

import extensions.openai.completions as OAIcompletions
from modules import shared
from modules.models import load_model, unload_model
from modules.logging_colors import logger
from modules.text_generation import encode

streaming_semaphore = asyncio.Semaphore(1)


def verify_api_key(authorization: str = Header(None)) -> None:
    expected_api_key = shared.args.api_key
    if expected_api_key and authorization != f"Bearer {expected_api_key}":
        raise HTTPException(status_code=401, detail="Unauthorized")


app = FastAPI()
check_key = [Depends(verify_api_key)]


def EventSourceResponse(generator):
    async def events():
        async for event in generator:
            yield f"data: {event['data']}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/v1/completions", dependencies=check_key)
async def openai_completions(request: Request, request_data: dict):
    if request_data.get("stream"):

        async def generator():
            async with streaming_semaphore:
                response = OAIcompletions.stream_completions(request_data)
                for resp in response:
                    disconnected = await request.is_disconnected()
                    if disconnected:
                        break

                    yield {"data": json.dumps(resp)}

        return EventSourceResponse(generator())

    else:
        response = OAIcompletions.completions(request_data, is_legacy=False)
        return JSONResponse(response)


@app.post("/v1/chat/completions", dependencies=check_key)
async def openai_chat_completions(request: Request, request_data: dict):
    response = OAIcompletions.chat_completions(request_data, is_legacy=False)
    return JSONResponse(response)


@app.get("/v1/models", dependencies=check_key)
async def handle_models(request: Request):
    return JSONResponse({"data": [{"id": shared.model_name}]})


@app.post("/v1/internal/token-count", dependencies=check_key)
async def handle_token_count(request_data: dict):
    return JSONResponse({"length": len(encode(request_data["text"])[0])})


@app.post("/v1/internal/model/load", dependencies=check_key)
async def handle_load_model(request_data: dict):
    try:
        unload_model()
        shared.model, shared.tokenizer = load_model(request_data["model_name"])
        return JSONResponse(content="OK")
    except:
        traceback.print_exc()
        return HTTPException(status_code=400, detail="Failed to load the model.")


@app.post("/v1/internal/model/unload", dependencies=check_key)
async def handle_unload_model():
    unload_model()


@app.post("/v1/internal/lora/load", dependencies=check_key)
async def handle_load_loras(request_data: dict):
    try:
        raise NotImplementedError(request_data)
    except NotImplementedError:
        return HTTPException(status_code=400, detail="Failed to apply the LoRA(s).")


def run_server():
    server_addr = "0.0.0.0" if shared.args.listen else "127.0.0.1"
    port = int(os.environ.get("OPENEDAI_PORT", shared.args.api_port))
    logger.info(f"OpenAI API key:\n\n{shared.args.api_key}\n")

    logging.getLogger("uvicorn.error").propagate = False
    uvicorn.run(app, host=server_addr, port=port)


def setup():
    if shared.args.nowebui:
        run_server()
    else:
        Thread(target=run_server, daemon=True).start()
