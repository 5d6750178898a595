"""Bodies of answers."""

from modules import shared
from modules.text_generation import encode, generate_reply


def _text(body):
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    text = ""
    for text in generate_reply(prompt, body):
        pass
    return text


def completions(body, is_legacy=False, stop_event=None):
    text = _text({**body, "stream": False})
    usage = {"completion_tokens": len(encode(text)[0])}
    return {"model": shared.model_name, "choices": [{"text": text}], "usage": usage}


def chat_completions(body, is_legacy=False, stop_event=None):
    answer = completions(body)
    return {**answer, "choices": [{"message": {"content": answer["choices"][0]["text"]}}]}


def stream_completions(body, is_legacy=False, stop_event=None):
    seen = ""
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    for text in generate_reply(prompt, {**body, "stream": True}):
        yield {"choices": [{"text": text[len(seen) :]}]}
        seen = text


stream_chat_completions = stream_completions
