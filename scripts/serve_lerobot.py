#!/usr/bin/env python3
"""Serve a policy that LeRobot trained (ACT, Diffusion Policy, SmolVLA, …) over openpi's WebSocket.

Runs in LeRobot's own environment, 0.4 or newer, and needs nothing of this package:

    pip install websockets msgpack    # beside lerobot
    python serve_lerobot.py outputs/train/my_policy/checkpoints/last/pretrained_model

The first frame tells what the policy looks at. Then each binary frame is a request of ``state``,
``images/<name>`` and ``prompt``, perhaps a ``seed``, and gets the policy's whole chunk. A request
that cannot be answered gets its reason as a text frame, and the connection is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

DTYPES = ("|u1", "|b1", "<i4", "<i8", "<f4", "<f8")  # none of them can hold an object
MAX_BYTES = 64 << 20  # of a frame
MAX_DIMENSIONS = 4
MAX_LENGTH = 64  # of a list or a map
MAX_ELEMENTS = 1024  # of all lists and maps of a frame
MAX_MESSAGE = 2000  # characters of an error


# ---- the wire -----------------------------------------------------------------------------------
def encode(message: Mapping[str, Any]) -> bytes:
    """Return a frame; arrays as openpi packs them."""

    def pack(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.str not in DTYPES:
            raise TypeError(f"cannot be sent: {type(value).__name__} {value!r:.80}")
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }

    packed: bytes = msgpack.packb(message, default=pack)
    return packed


def decode(frame: bytes | str) -> dict[str, Any]:
    """Return a request with its arrays.

    NumPy takes bytes for whatever a type says they are, objects too, and reads past their end if a
    shape is larger. So a type must be one of a few, and the size must be the shape's.

    Raises:
        ValueError: it is no such thing.
    """
    if isinstance(frame, str):
        raise ValueError("a request is a binary frame, this one is text")
    elements = 0

    def count(values: Any) -> Any:
        nonlocal elements
        elements += len(values)
        if elements > MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS} elements; send arrays as __ndarray__")
        return values

    def unpack(value: dict[Any, Any]) -> Any:
        count(value)
        if b"__ndarray__" in value:
            return _array(value.get(b"data"), value.get(b"dtype"), value.get(b"shape"))
        if b"__npgeneric__" in value:  # a number of NumPy's
            return value.get(b"data")
        return value

    try:
        message = msgpack.unpackb(
            frame,
            object_hook=unpack,
            list_hook=count,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_ext_len=0,
        )
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        # What msgpack raises of its own may say nothing.
        raise ValueError(f"cannot be decoded: {str(error) or type(error).__name__}") from error
    if not isinstance(message, dict):
        raise ValueError(f"a request is a map of names, this one is a {type(message).__name__}")
    return message


def _array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    if dtype not in DTYPES:
        raise ValueError(f"an array's type must be one of {', '.join(DTYPES)}, not {dtype!r:.40}")
    lengths = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not lengths or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"an array's shape is no list of lengths: {shape!r:.80}")
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise ValueError(
            f"an array of shape {shape} and type {dtype} has {wanted} bytes, not {found}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


# ---- what a policy looks at ---------------------------------------------------------------------
@dataclass(frozen=True)
class Input:
    """One of a policy's inputs.

    Attributes:
        key: LeRobot's name, such as ``observation.images.cam_high``.
        shape: (3, H, W) of an image, else that of the vector.
        image: uint8 on the wire, (H, W, 3) or (3, H, W).
    """

    key: str
    shape: tuple[int, ...]
    image: bool

    @property
    def name(self) -> str:
        """The name on the wire: ``images/cam_high``, ``state``."""
        return self.key.removeprefix("observation.").replace(".", "/")


def take_inputs(request: Mapping[str, Any], inputs: tuple[Input, ...]) -> dict[str, np.ndarray]:
    """Return a request's inputs by LeRobot's names: float32, images (3, H, W) from 0 to 1.

    Raises:
        ValueError: one is missing, or is not what the policy was trained on. A network of
            convolutions would take images of any size and answer nonsense.
    """
    given = dict(_flat(request))
    missing = [each.name for each in inputs if each.name not in given]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}; has {', '.join(sorted(given)) or 'nothing'}")
    taken = {}
    for each in inputs:
        value, shapes = np.asarray(given[each.name]), [each.shape]
        if each.image:
            shapes.append((*each.shape[1:], each.shape[0]))
        if value.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{each.name}: has shape {value.shape}, must be {wanted}")
        if each.image:
            if value.dtype != np.uint8:
                raise ValueError(f"{each.name}: has type {value.dtype}, must be uint8")
            value = value if value.shape == each.shape else value.transpose(2, 0, 1)
            value = value / np.float32(255)
        elif value.dtype.kind not in "fiu" or not np.isfinite(value).all():
            raise ValueError(f"{each.name}: must be finite numbers")
        taken[each.key] = np.ascontiguousarray(value, np.float32)
    return taken


def _flat(message: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return ``{"images": {"top": …}}`` as ``images/top``, which may be sent as such too."""
    found: list[tuple[str, Any]] = []
    for key, value in message.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}/") if isinstance(value, dict) else [(name, value)]
    return found


class Policy:
    """A checkpoint, with the normalisation that was saved beside it.

    Attributes:
        metadata: the first frame of every connection.
    """

    def __init__(self, folder: Path, device: str, fps: float | None) -> None:
        """Load it, and let it answer once: that tells how many rows it gives."""
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        self._torch = torch
        config = PreTrainedConfig.from_pretrained(folder)
        config.pretrained_path, config.device = folder, device
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # the checkpoint has them, trained on
        self._policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        self._before, self._after = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": device}},
        )
        self._images = tuple(config.image_features)
        self._inputs = tuple(
            Input(key, tuple(feature.shape), key in self._images)
            for key, feature in config.input_features.items()
        )
        blank = {
            each.name: np.zeros(each.shape, np.uint8 if each.image else np.float32)
            for each in self._inputs
        }
        rows = self.infer({**blank, "prompt": "look at the table"})
        self.metadata = {
            "server": "serve_lerobot",
            "policy": config.type,
            "checkpoint": str(folder),
            "inputs": {
                each.name: {
                    "shape": list(each.shape),
                    "dtype": "uint8" if each.image else "float32",
                }
                for each in self._inputs
            },
            "actions": {"shape": list(rows.shape), "dtype": "float32"},
            "fps": fps if fps is not None else trained_fps(folder),
            "observations": {"wanted": config.n_obs_steps, "earlier": "repeated"},
        }

    def infer(self, request: dict[str, Any]) -> np.ndarray:
        """Return the whole chunk, whatever was asked before.

        Between two requests the arms execute a chunk: the observation one step earlier, which a
        policy with ``n_obs_steps`` of 2 or more looks at too, is never sent. The one that is sent
        stands for it, as it does in LeRobot's own evaluation when an episode begins.
        """
        torch, policy = self._torch, self._policy
        taken = take_inputs(request, self._inputs)
        batch: dict[str, Any] = {key: torch.from_numpy(value) for key, value in taken.items()}
        if "prompt" in request:
            batch["task"] = str(request["prompt"])
        seed = request.get("seed")
        if seed is not None:
            if type(seed) is not int:
                raise ValueError(f"seed: {seed!r:.40} must be a whole number")
            torch.manual_seed(seed % 2**63)
        with torch.inference_mode():
            batch = self._before(batch)
            batch.pop("action", None)  # of a training sample; here it is None
            policy.reset()
            # Diffusion Policy, VQ-BeT and TD-MPC look into their own queues of observations.
            queues = getattr(policy, "_queues", None) or {}
            if "observation.images" in queues:
                seen = [batch[key] for key in self._images]
                batch["observation.images"] = torch.stack(seen, dim=-4)
            for key in batch.keys() & queues.keys():
                queues[key].extend([batch[key]] * queues[key].maxlen)
            chunk = policy.predict_action_chunk(batch)
            return np.asarray(self._after(chunk[0]).cpu().numpy(), np.float32)


def trained_fps(folder: Path) -> float | None:
    """Return the rows per second of the data set that was trained on, where it can be found."""
    try:
        data = json.loads((folder / "train_config.json").read_text(encoding="utf-8"))["dataset"]
        info = Path(data["root"]) / "meta/info.json"
        return float(json.loads(info.read_text(encoding="utf-8"))["fps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- the server ---------------------------------------------------------------------------------
async def run_server(
    policy: Policy, host: str, port: int, started: Callable[[int], object]
) -> None:
    """Answer any number of connections, one request at a time, until cancelled.

    Args:
        policy: answers.
        host: an address of this machine.
        port: 0 for a free one.
        started: is called with the port once connections are taken.
    """
    turn = asyncio.Lock()

    async def answer(socket: ServerConnection) -> None:
        try:
            await socket.send(encode(policy.metadata))
            async for frame in socket:
                request = decode(frame)
                async with turn:
                    began = time.monotonic()
                    # In a thread of its own: /healthz answers meanwhile.
                    actions = await asyncio.to_thread(policy.infer, request)
                    took = time.monotonic() - began
                timing = {"infer_ms": took * 1000}
                await socket.send(encode({"actions": actions, "server_timing": timing}))
        except ConnectionClosed:
            pass
        except Exception as error:
            known = isinstance(error, ValueError)
            logging.error("%s: %s", socket.remote_address, error, exc_info=not known)
            message = str(error) if known else f"{type(error).__name__}: {error}"
            with suppress(ConnectionClosed):
                await socket.send(message[:MAX_MESSAGE])
            await socket.close(CloseCode.INTERNAL_ERROR, "see the text frame")

    def health(socket: ServerConnection, request: Request) -> Response | None:
        return socket.respond(HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None

    async with serve(
        answer,
        host,
        port,
        compression=None,
        max_size=MAX_BYTES,
        origins=[None],  # no page of a browser
        ping_interval=None,  # a rig may rest for long between two requests
        process_request=health,
    ) as server:
        started(server.sockets[0].getsockname()[1])
        await server.serve_forever()


def main() -> None:
    """Read the command line, load the policy and serve it."""
    parser = argparse.ArgumentParser(description="Serve a LeRobot policy over openpi's WebSocket.")
    parser.add_argument("checkpoint", type=Path, help="folder with config.json, model.safetensors")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the wire is neither encrypted nor authenticated: to be reached from another "
        "machine, use an ssh tunnel (%(default)s)",
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--device", default="cpu", help="torch's: cpu, cuda (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="torch's; 0 as torch does (0)")
    parser.add_argument(
        "--fps",
        type=float,
        help="rows per second, for the client to see; by default those of the training's data "
        "set, if it is still there",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="serve_lerobot: %(message)s")
    if not (options.checkpoint / "config.json").is_file():
        parser.error(f"{options.checkpoint}: has no config.json; give the folder pretrained_model")
    try:
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        policy = Policy(options.checkpoint, options.device, options.fps)
    except ModuleNotFoundError as error:
        parser.exit(1, f"no module '{error.name}': start this with the Python that has LeRobot\n")
    print(json.dumps(policy.metadata, indent=2), flush=True)

    def started(port: int) -> None:
        print(f"serving on ws://{options.host}:{port}", flush=True)

    try:
        asyncio.run(run_server(policy, options.host, options.port, started))
    except OSError as error:  # the port is taken, or the address is not this machine's
        parser.exit(1, f"{options.host}:{options.port}: {error.strerror}\n")
    except KeyboardInterrupt:
        print("stopped", flush=True)


if __name__ == "__main__":
    main()
