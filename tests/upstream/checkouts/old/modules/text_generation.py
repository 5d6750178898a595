"""Generate text."""

import time
import traceback

import modules.shared as shared
from modules.callbacks import Iteratorize
from modules.logging_colors import logger


class _StopEverythingStoppingCriteria:
    def __call__(self, ids, scores):
        return shared.stop_everything


def generate_reply(*args, **kwargs):
    shared.generation_lock.acquire()
    try:
        for result in _generate_reply(*args, **kwargs):
            yield result
    finally:
        shared.generation_lock.release()


def _generate_reply(
    question, state, stopping_strings=None, is_chat=False, escape_html=False, for_ui=False
):
    if shared.model is None:
        logger.error("No model")
        yield ""
        return

    shared.stop_everything = False
    is_custom = shared.model.__class__.__name__ in ["LlamaServer"]
    generate_func = generate_reply_custom if is_custom else generate_reply_HF
    for reply in generate_func(question, question, 0, state, stopping_strings, is_chat=is_chat):
        yield reply


def encode(prompt, add_special_tokens=True, add_bos_token=True, truncation_length=None):
    input_ids = [shared.tokenizer.encode(str(prompt))]
    if shared.model.__class__.__name__ in ["LlamaServer"] or shared.args.cpu:
        return input_ids
    else:
        return input_ids.cuda()


def generate_reply_HF(
    question, original_question, seed, state, stopping_strings=None, is_chat=False
):
    generate_params = {"stopping_criteria": []}
    generate_params["stopping_criteria"].append(_StopEverythingStoppingCriteria())
    generate_params["inputs"] = encode(question)

    t0 = time.time()
    output = []
    try:
        if not is_chat:
            yield ""

        if not state["stream"]:
            output = shared.model.generate(**generate_params)[0]
            output = output.cuda()
            yield str(output)
        else:

            def generate_with_callback(callback=None, *args, **kwargs):
                shared.model.generate(callback=callback, **kwargs)

            def generate_with_streaming(**kwargs):
                return Iteratorize(generate_with_callback, [], kwargs, callback=None)

            with generate_with_streaming(**generate_params) as generator:
                for output in generator:
                    yield str(output)

    except Exception:
        traceback.print_exc()
    finally:
        print(f"Output generated in {time.time() - t0:.2f} seconds")
        return


def generate_reply_custom(
    question, original_question, seed, state, stopping_strings=None, is_chat=False
):
    t0 = time.time()
    try:
        if not is_chat:
            yield ""

        if not state["stream"]:
            yield shared.model.generate(question, state)
        else:
            for reply in shared.model.generate_with_streaming(question, state):
                yield reply

    except Exception:
        traceback.print_exc()
    finally:
        print(f"Output generated in {time.time() - t0:.2f} seconds")
        return
