"""Clients of a Triton server: run beside `tritonclient`, in an environment of its own (see test_triton_server.py).

    python asking.py WHAT MODEL HTTP_PORT GRPC_PORT FOLDER

Rows by input are in FOLDER/rows.npz, and in expected.npz, as START|SIZE|OUTPUT, what the engine gives for some of them.
Each ends with 0 where all went as it must.
"""

from __future__ import annotations

import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

REQUESTS = 10_000


def made(module: Any, name: str, rows: np.ndarray) -> Any:
    """An input of either protocol."""
    given = module.InferInput(name, list(rows.shape), np_to_triton_dtype(rows.dtype))
    given.set_data_from_numpy(rows)
    return given


def with_axis(rows: np.ndarray) -> np.ndarray:
    """To clients, a single number of each row has an axis."""
    return rows if rows.ndim > 1 else rows[:, None]


class Asked:
    """A model of a server, and rows for it."""

    def __init__(self, model: str, http: int, grpc: int, folder: Path) -> None:
        self.model, self.http = model, http
        self.addresses = {tritonclient.http: f"127.0.0.1:{http}", tritonclient.grpc: f"127.0.0.1:{grpc}"}
        self.rows = {name: with_axis(rows) for name, rows in np.load(folder / "rows.npz").items()}
        self.expected: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        for key, array in np.load(folder / "expected.npz").items():
            start, size, output = key.split("|")
            self.expected.setdefault((int(start), int(size)), {})[output] = with_axis(array)
        self.starts = sorted({start for start, _ in self.expected})

    def client(self, module: Any) -> Any:
        return module.InferenceServerClient(self.addresses[module])

    def inputs(self, module: Any, start: int, size: int) -> list[Any]:
        return [made(module, name, rows[start : start + size]) for name, rows in self.rows.items()]

    def check(self, result: Any, start: int, size: int) -> None:
        """A request may be computed together with those of other clients, which rounds otherwise."""
        for name, array in self.expected[start, size].items():
            found = result.as_numpy(name)
            assert (found.shape, found.dtype) == (array.shape, array.dtype)
            np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)


def ask(asked: Asked) -> None:
    """A client for each start, at once with the others, asks by both protocols at each size."""

    def one(number: int) -> None:
        for module in (tritonclient.http, tritonclient.grpc):
            with asked.client(module) as client:
                for start, size in asked.expected:
                    if start == number:
                        asked.check(client.infer(asked.model, asked.inputs(module, start, size)), start, size)

    with ThreadPoolExecutor(len(asked.starts)) as clients:
        assert [*clients.map(one, asked.starts)]


def refused(client: Any, model: str, inputs: list[Any]) -> None:
    try:
        client.infer(model, inputs)
    except InferenceServerException as error:
        assert str(error)
    else:
        raise AssertionError("garbage was answered")


def garbage(asked: Asked) -> None:
    """What nobody can answer is an error, and the next is answered."""
    for payload in (
        b"nonsense\r\n\r\n",
        b"\x00" * 4096,
        b"POST /v2/models/x/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", asked.http)) as raw:
            raw.sendall(payload)
    name, rows = next(iter(asked.rows.items()))
    bad = [
        rows[:1].astype(np.float64 if rows.dtype == np.float32 else np.int32),  # another dtype
        np.concatenate([rows[:1], rows[:1]], axis=-1),  # another shape
        rows[:1].reshape(-1),  # no batch
        np.resize(rows, (64, *rows.shape[1:])),  # more rows than the engine takes
        rows[:0],
    ]
    for module in (tritonclient.http, tritonclient.grpc):
        with asked.client(module) as client:
            good = asked.inputs(module, 0, 1)
            for inputs in (
                *([made(module, name, array), *good[1:]] for array in bad),
                [made(module, "no", rows[:1])],
                [],
            ):
                refused(client, asked.model, inputs)
            refused(client, "no-such-model", good)
            asked.check(client.infer(asked.model, good), 0, 1)


def label(asked: Asked) -> None:
    """The most probable class comes with its label, `label N` of class N."""
    ((name, rows),) = asked.expected[0, 3].items()
    for module in (tritonclient.http, tritonclient.grpc):
        with asked.client(module) as client:
            output = module.InferRequestedOutput(name, class_count=1)
            found = client.infer(asked.model, asked.inputs(module, 0, 3), outputs=[output]).as_numpy(name)
            told = [text.decode().split(":")[1:] for text in found.ravel()]
            assert told == [[str(best), f"label {best}"] for best in rows.argmax(axis=1)], told


def many(asked: Asked) -> None:
    """Ten thousand requests in flight at once."""
    with asked.client(tritonclient.grpc) as client:
        done: Queue[tuple[int, Any, Any]] = Queue()
        for number in range(REQUESTS):
            start = asked.starts[number % len(asked.starts)]
            answered = partial(lambda start, result, error: done.put((start, result, error)), start)
            client.async_infer(asked.model, asked.inputs(tritonclient.grpc, start, 1), callback=answered)
        for _ in range(REQUESTS):
            start, result, error = done.get(timeout=300)
            assert error is None, error
            asked.check(result, start, 1)


def parse(folder: Path) -> None:
    """NVIDIA's own reader takes each configuration, and finds no field that it does not know."""
    for path in folder.rglob("config.pbtxt"):
        text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "parse":
        parse(Path(words[0]))
    else:
        model, http, grpc, folder = words
        {"ask": ask, "garbage": garbage, "label": label, "many": many}[what](
            Asked(model, int(http), int(grpc), Path(folder))
        )
