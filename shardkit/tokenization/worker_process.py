"""A worker process's life: it reads and encodes chunks, holds their tokens, and writes them where it is told to.

One thread receives, so that the next chunk has come while the present one is encoded; another sends, so that no worker
waits for the main process; two write (`held_tokens.py`).
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from shardkit.sources.remote_bytes import traffic
from shardkit.tokenization.held_tokens import HeldTokens
from shardkit.tokenization.pipes import inherited
from shardkit.tokenization.worker import ChunkEncoder, Job
from shardkit.tokenization.worker_messages import (
    Answer,
    Drop,
    Encoded,
    Ended,
    Finish,
    Finished,
    Keep,
    MessageReceiver,
    Put,
    send_answers,
)

_REPORT_SECONDS = 0.1  # that an answer waits for the end of the chunk that is encoded, to go with it


def work(descriptor: int, shared: int | None) -> None:
    """Do what comes down the pipe whose end is the file `descriptor`, until it closes. What was fetched for a chunk may
    be in the memory of the file `shared`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = inherited(descriptor)
    receiver = MessageReceiver(pipe, shared)
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    held = HeldTokens(answers.put)
    encoding = threading.Event()

    def receive() -> None:
        for message in receiver.receive():
            held.do(message) if isinstance(message, Put | Keep | Drop | Finish) else messages.put(message)

    def answer() -> None:
        said = [answers.get()]
        until = time.monotonic() + _REPORT_SECONDS
        with suppress(queue.Empty):
            while True:
                waits = encoding.is_set() and not any(map(_is_waited_for, said))
                said.append(answers.get(timeout=max(0.0, until - time.monotonic()) if waits else 0))
        send_answers(pipe, said)

    for step in (receive, answer, *held.threads()):
        threading.Thread(target=_repeat, args=(step,), daemon=True).start()
    for module in ("shardkit.sources.texts", "tiktoken", "fastokens"):  # while the main process loads the vocabulary
        importlib.import_module(module)
    _encode(messages, held, answers, encoding)


def _repeat(step: Callable[[], None]) -> None:
    """Do a step for ever; the process ends with it."""
    try:
        while True:
            step()
    except (EOFError, ConnectionError):
        os._exit(0)  # the main process is gone
    except BaseException:  # noqa: BLE001 (a bug, or what cannot be unpickled: the main process would wait for ever)
        traceback.print_exc()
        os._exit(1)


def _is_waited_for(answer: Answer) -> bool:
    """Whether the main process may have nothing else to do before it."""
    if isinstance(answer, Encoded):
        return bool(answer.stated["last"])
    return isinstance(answer, Ended | Finished) or answer.fills or answer.error is not None


def _encode(
    messages: queue.SimpleQueue[Any], held: HeldTokens, answers: queue.SimpleQueue[Answer], encoding: threading.Event
) -> None:
    """Encode the chunks that come; the job comes before them."""
    encoder: ChunkEncoder | None = None
    waits_since, fetched = 0.0, 0
    while True:
        encoding.clear()
        message = messages.get()
        encoding.set()
        if isinstance(message, Job):
            encoder, held.folder = ChunkEncoder(message), message.tokens_folder
            continue
        if encoder is None:
            raise RuntimeError("a chunk came before the job")
        waited = time.monotonic() - waits_since if waits_since else 0.0
        for result in encoder.encode(message):
            result.waited, waited = waited, 0.0
            result.fetched_bytes, fetched = traffic().bytes - fetched, traffic().bytes
            tokens, result.tokens = result.tokens, np.empty(0, np.uint16)
            result.holder = held.hold(tokens, waits=not message.is_whole_file) if len(tokens) else None
            answers.put(Encoded.of(result, message))
            del tokens
        if message.is_whole_file:
            answers.put(Ended())
        waits_since = time.monotonic()
