"""From a function with a callback to an iterator."""

from queue import Queue
from threading import Thread

import modules.shared as shared
from modules.logging_colors import logger


class StopNowException(Exception):
    pass


class Iteratorize:
    def __init__(self, func, args=None, kwargs=None, callback=None):
        self.mfunc = func
        self.q = Queue()
        self.sentinel = object()
        self.args = args or []
        self.kwargs = kwargs or {}
        self.stop_now = False

        def _callback(val):
            if self.stop_now or shared.stop_everything:
                raise StopNowException
            self.q.put(val)

        def gentask():
            try:
                self.mfunc(callback=_callback, *self.args, **self.kwargs)
            except StopNowException:
                pass
            except Exception:
                logger.exception("failed in the callback")

            self.q.put(self.sentinel)

        self.thread = Thread(target=gentask)
        self.thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        obj = self.q.get(True, None)
        if obj is self.sentinel:
            raise StopIteration
        else:
            return obj

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.stop_now = True
