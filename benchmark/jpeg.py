"""JPEG by one library and another: time, bytes, and what is left of an image at a model's input.

Run, from the package's root::

    . scripts/env.sh
    python benchmark/jpeg.py [--rounds 30]

Three 640x480 images of noise, and three of the simulated rig with a camera's noise on them, at
quality 95. Milliseconds are of one thread's CPU, the median. PyTurboJPEG is measured where it and
the system's libturbojpeg are installed. All of them leave Python's interpreter to other threads.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import simplejpeg  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image as Pillow  # noqa: E402

from cosmos_policy_ros.model.images import as_stored, centre_crop, reduce  # noqa: E402
from cosmos_policy_ros.sim.render import Renderer  # noqa: E402
from cosmos_policy_ros.sim.rig import SimRig  # noqa: E402

HEIGHT, WIDTH, QUALITY, MODEL = 480, 640, 95, 224
SENSOR_NOISE = 2.0  # grey levels
ImageArray = NDArray[np.uint8]
Encode = Callable[[ImageArray], bytes]
Decode = Callable[[bytes], ImageArray]


def images() -> dict[str, list[ImageArray]]:
    """Return three images (480, 640, 3) RGB of each kind."""
    rng = np.random.default_rng(0)
    renderer, rig = Renderer("transfer_cube", HEIGHT, WIDTH), SimRig("transfer_cube")
    rig.reset("transfer_cube", 0)
    rendered = renderer.render(rig.snapshot()).values()
    renderer.close()
    noisy = [image + rng.normal(0, SENSOR_NOISE, image.shape) for image in rendered]
    return {
        "noise": [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(3)],
        "rig": [np.clip(image, 0, 255).astype(np.uint8) for image in noisy],
    }


def libraries() -> dict[str, tuple[Encode, Decode]]:
    def opencv(image: ImageArray) -> bytes:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()

    def opencv_back(data: bytes) -> ImageArray:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))

    def pillow(image: ImageArray) -> bytes:
        file = io.BytesIO()
        Pillow.fromarray(image).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
        return file.getvalue()

    def by_simplejpeg(subsampling: str) -> tuple[Encode, Decode]:
        def encode(image: ImageArray) -> bytes:
            return bytes(simplejpeg.encode_jpeg(image, QUALITY, "RGB", subsampling))

        return encode, simplejpeg.decode_jpeg

    found: dict[str, tuple[Encode, Decode]] = {
        "OpenCV 4:2:0": (opencv, opencv_back),
        "Pillow 4:2:0": (pillow, lambda data: np.asarray(Pillow.open(io.BytesIO(data)))),
        "simplejpeg 4:2:0": by_simplejpeg("420"),
        "simplejpeg 4:2:2": by_simplejpeg("422"),
        "simplejpeg 4:4:4": by_simplejpeg("444"),
    }
    try:
        import turbojpeg

        turbo = turbojpeg.TurboJPEG()
    except (ImportError, RuntimeError):
        return found

    def by_pyturbojpeg(image: ImageArray) -> bytes:
        return bytes(turbo.encode(image, QUALITY, turbojpeg.TJPF_RGB, turbojpeg.TJSAMP_420))

    def pyturbojpeg_back(data: bytes) -> ImageArray:
        return np.asarray(turbo.decode(data, turbojpeg.TJPF_RGB))

    found["PyTurboJPEG 4:2:0"] = by_pyturbojpeg, pyturbojpeg_back
    return found


def at_the_model(image: ImageArray) -> NDArray[np.float64]:
    """Return what a released checkpoint makes of an image."""
    return centre_crop(reduce(as_stored(image, "primary"), MODEL)).numpy().astype(np.float64)


def psnr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def milliseconds(act: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.thread_time()
        act()
        taken.append(1e3 * (time.thread_time() - began))
    return statistics.median(taken)


def measure(encode: Encode, decode: Decode, shown: Sequence[ImageArray], rounds: int) -> str:
    files = [encode(image) for image in shown]
    pairs = list(zip(shown, map(decode, files), strict=True))
    there = milliseconds(lambda: encode(shown[0]), rounds)
    back = milliseconds(lambda: decode(files[0]), rounds)
    size = statistics.mean(map(len, files)) / 1e3
    camera = min(psnr(a.astype(float), b.astype(float)) for a, b in pairs)
    model = min(psnr(at_the_model(a), at_the_model(b)) for a, b in pairs)
    return f"{there:7.2f} ms{back:7.2f} ms{size:8.0f}{camera:8.1f}{model:8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {WIDTH}x{HEIGHT}")
    print(f"{'':20}{'images':>8}{'encode':>10}{'decode':>10}{'kB':>8}{'PSNR':>8}{f'at {MODEL}':>8}")
    for kind, shown in images().items():
        for name, library in libraries().items():
            print(f"{name:20}{kind:>8}{measure(*library, shown, rounds)}")


if __name__ == "__main__":
    main()
