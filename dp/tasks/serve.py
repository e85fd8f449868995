"""Runs an environment or a policy for `dp.tasks.elsewhere`: python -c TEXT PACKAGE:CLASS, or FILE.py:CLASS

TEXT is this file. Any Python from 3.6 on that has numpy runs it: it needs nothing of `dp`. It reads messages from
standard input, answers on what was standard output, and ends with the stream. A message is the length of its JSON, the
JSON, and the bytes of the arrays that it mentions.
"""

import importlib
import importlib.util
import json
import os
import struct
import sys
import traceback
from typing import IO, Any

import numpy as np


def send(stream: IO[bytes], value: Any) -> None:
    """Writes `value`: numbers, texts, dicts, lists and arrays."""
    arrays: list[Any] = []

    def plain(node: Any) -> Any:
        if hasattr(node, "__array__") and not isinstance(node, np.generic):  # a tensor, too
            node = np.asarray(node)
            arrays.append(np.ascontiguousarray(node))
            return {"#array": [arrays[-1].dtype.str, list(node.shape)]}
        if isinstance(node, dict):
            return {key: plain(inner) for key, inner in node.items()}
        if isinstance(node, (list, tuple)):
            return [plain(inner) for inner in node]
        return node.item() if isinstance(node, np.generic) else node

    text = json.dumps(plain(value)).encode()
    stream.write(struct.pack("<q", len(text)) + text + b"".join(array.tobytes() for array in arrays))
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """What the other side wrote. Raises EOFError at the end of the stream."""
    (length,) = struct.unpack("<q", _exactly(stream, 8))
    return _whole(json.loads(_exactly(stream, length).decode()), stream)


def _exactly(stream: IO[bytes], n_bytes: int) -> bytes:
    found = stream.read(n_bytes)
    if len(found) < n_bytes:
        raise EOFError
    return found


def _whole(node: Any, stream: IO[bytes]) -> Any:
    if isinstance(node, list):
        return [_whole(inner, stream) for inner in node]
    if not isinstance(node, dict):
        return node
    if "#array" in node:
        kind, shape = np.dtype(node["#array"][0]), node["#array"][1]
        n_bytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        return np.frombuffer(_exactly(stream, n_bytes), kind).reshape(shape).copy()
    return {key: _whole(inner, stream) for key, inner in node.items()}


def answered(thing: Any, method: str, arguments: Any) -> Any:
    """The answer to one question. An environment tells its state with every `reset` and `step`."""
    if method == "get":
        return getattr(thing, *arguments)
    if method == "has":
        return hasattr(thing, *arguments)
    answer = getattr(thing, method)(*arguments)
    told = method in ("reset", "step") and hasattr(thing, "reward")
    return [thing.reward, thing.success, thing.terminated, thing.info()] if told else answer


def _class(target: str) -> Any:
    place, _, name = target.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    spec: Any = importlib.util.spec_from_file_location("simulator", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a simulator prints is no answer
    questions: IO[bytes] = sys.stdin.buffer
    thing: Any = None
    while True:
        try:
            method, arguments = receive(questions)
        except EOFError:
            return
        try:
            if method == "make":
                thing = _class(sys.argv[1])(**arguments)
                answer: Any = None
            else:
                answer = answered(thing, method, arguments)
        except Exception as error:
            if not isinstance(error, ImportError):  # its message says it all
                traceback.print_exc()
            send(answers, ["error", "{}: {}".format(type(error).__name__, error)])  # noqa: UP032
        else:
            send(answers, ["value", answer])


if __name__ == "__main__":
    main()
