"""What the operator's page shows, how late, and what it costs the rest of the graph.

Run, from the package's root, where Chromium is installed (``scripts/setup --tests``)::

    . scripts/env.sh
    python benchmark/panel.py [--chunks 30] [--rounds 2] [--flips 20]

``cost``
    A feed publishes three 640x480 rgb8 cameras at 30 Hz; a policy node (the tiny checkpoint cut
    to one denoising step) runs on it, dry, and a recorder records it as JPEG. In turns without a
    panel, with one, and with one or three pages open in a browser on the same machine, at the
    lowest priority: the decisions' latency, the frames that are not in the bag, CPU of panel and
    browser, images shown per second and camera, and the answer to STOP.
``latency``
    A camera's image turns from black to white; how long until the page's canvas is white.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import rclpy  # noqa: E402
from cosmos_policy_ros.msg import Decision  # noqa: E402
from helpers.browser import chromium, tab  # noqa: E402
from playwright.sync_api import Browser, Page  # noqa: E402
from ros_path import End, quick_checkpoint  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from cosmos_policy_ros.bags.jpeg import SUFFIX  # noqa: E402
from cosmos_policy_ros.core.paths import config_folder  # noqa: E402
from cosmos_policy_ros.episodes.episode import read_messages  # noqa: E402
from cosmos_policy_ros.nodes import shell  # noqa: E402
from cosmos_policy_ros.nodes.client import GraphClient  # noqa: E402
from cosmos_policy_ros.nodes.graph import (  # noqa: E402
    NodeProcesses,
    environment,
    node_processes,
    request_to_keep_to_machine,
)
from cosmos_policy_ros.rig.spec import load_rig  # noqa: E402

PATIENCE = 120.0  # s
URL = re.compile(r"operator's page: (\S+)")
WAYS = {"no panel": -1, "panel": 0, "one page": 1, "three pages": 3}  # pages open
RIG = load_rig("sim", config_folder("rigs"))
WIDTH, HEIGHT, RATE = 640, 480, 30.0

Result = dict[str, float]


def cpu_seconds(*pids: int) -> float:
    """Return the CPU seconds of some processes."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def browser_processes() -> list[int]:
    """Return the processes of every Chromium on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if b"/chromium/" in path.read_bytes().split(b"\0")[0]:
                found.append(int(path.parent.name))
    return found


def step_back() -> None:
    """Give the browser the lowest priority: an operator's is often on another machine."""
    for pid in browser_processes():
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), 19)


def shown(page: Page) -> int:
    """Return how many images the page's cameras have shown so far."""
    counts = page.locator("#images figure:not(.imagined) canvas").evaluate_all(
        "all => all.map(each => Number(each.dataset.shown ?? 0))"
    )
    return int(sum(counts))


def missing(bag: Path) -> int:
    """Return how many of the feed's frames are not between the first and the last in the bag."""
    numbers: dict[str, list[int]] = {}
    topics = [f"/{camera.topic}{SUFFIX}" for camera in RIG.cameras]
    for topic, _, message in read_messages(bag, topics):
        numbers.setdefault(topic, []).append(int(message.header.frame_id))
    return sum(found[-1] - found[0] + 1 - len(found) for found in numbers.values())


@contextmanager
def running(folder: Path, pages: int, checkpoint: str) -> Iterator[tuple[NodeProcesses, Any]]:
    """Run feed, policy, recorder and perhaps a panel; the feed's arms do not move, hence dry."""
    root = str(folder / "rollouts")
    graph = node_processes(
        engine="cosmos",
        checkpoint=checkpoint,
        dry_run=True,
        root=root,
        panel=pages >= 0,
        panel_port=0,
    )
    nodes = [node for node in graph if node.executable != "sim_rig_node"]
    parameters = [f"root:={root}", "images:=jpeg"]
    recorder = ["--ros-args", *(word for each in parameters for word in ("-p", each))]
    with (
        End(folder, "feed", "--smooth"),
        End(folder, "recorder", *recorder),
        NodeProcesses(nodes, folder) as processes,
    ):
        client = GraphClient("benchmark", processes.check)
        try:
            client.policy_ready(PATIENCE)
            yield processes, client
        finally:
            client.close()


def page_url(processes: NodeProcesses) -> str:
    """Return the address that the panel has printed."""
    deadline = time.monotonic() + PATIENCE
    while not (found := URL.search(processes.log("operator_panel"))):
        if time.monotonic() > deadline:
            raise SystemExit("the panel has printed no address")
        time.sleep(0.1)
    return found[1]


def measure_cost(
    folder: Path, pages: int, chunks: int, checkpoint: str, browser: Browser
) -> Result:
    """Run so many chunks in one way."""
    folder.mkdir()
    latencies: list[float] = []
    found: Result = {}
    with running(folder, pages, checkpoint) as (processes, client), ExitStack() as stack:
        client.node.create_subscription(
            Decision,
            "policy_node/decision",
            lambda message: latencies.append(1e3 * sum(message.phase_seconds)),
            chunks,
        )
        tabs: list[Page] = []
        for _ in range(max(0, pages)):
            tabs.append(stack.enter_context(tab(browser, page_url(processes))))
            tabs[-1].locator("#images figure.fresh").first.wait_for()
        step_back()
        started = client.start_episode(task="transfer_cube")
        if not started.success:
            raise SystemExit(started.message)
        client.arm_when_ready(PATIENCE)
        panel = processes.pid("operator_panel") if pages >= 0 else 0
        before, began = (
            [cpu_seconds(panel), cpu_seconds(*browser_processes()), *map(shown, tabs)],
            time.monotonic(),
        )
        goal = client.start_run(chunk_limit=chunks, time_limit=1e6)
        run = client.finish_run(goal, PATIENCE + chunks)
        if not run.success:
            raise SystemExit(f"the run ended early, the machine is too busy: {run.message}")
        seconds = time.monotonic() - began
        after = [cpu_seconds(panel), cpu_seconds(*browser_processes()), *map(shown, tabs)]
        spent = [(b - a) / seconds for a, b in zip(before, after, strict=True)]
        found |= {"panel": spent[0] if panel else 0.0, "browser": spent[1] if tabs else 0.0}
        found["shown"] = statistics.mean(spent[2:]) / len(RIG.cameras) if tabs else 0.0
        found["stop"] = answer_to_stop(tabs[-1]) if tabs else 0.0
        stopped = client.stop_episode()
    found |= {"p50": statistics.median(latencies), "max": max(latencies)}
    return found | {"lost": float(missing(Path(stopped.path))), "load": os.getloadavg()[0]}


def answer_to_stop(page: Page) -> float:
    """Return the ms from pressing space to the answer on the page."""
    began = time.monotonic()
    page.keyboard.press("Space")
    page.locator("#answer", has_text="disarmed").wait_for()
    return 1e3 * (time.monotonic() - began)


# Notes the wall time of every change between black and white.
WATCH = """() => {
  const canvas = document.querySelector('figure[data-source="primary"] canvas');
  window.flips = [];
  let white = null;
  const look = () => {
    const [red] = canvas.getContext("2d").getImageData(320, 240, 1, 1).data;
    if (red > 128 !== white) window.flips.push(Date.now());
    white = red > 128;
    requestAnimationFrame(look);
  };
  look();
}"""


class Flipping:
    """A camera of 30 Hz whose image is black or white; the other sources are silent."""

    def __init__(self, client: GraphClient) -> None:
        topic = next(camera.topic for camera in RIG.cameras if camera.role == "primary")
        self._publisher = client.node.create_publisher(Image, topic, 5)
        self._images = []
        for level in (0, 255):
            message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
            message.data = array("B", bytes([level]) * (3 * WIDTH * HEIGHT))
            self._images.append(message)
        self.flips: list[float] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish no more."""
        self._ending.set()
        self._thread.join()

    def _publish(self) -> None:
        frames, white = 0, False
        while not self._ending.wait(1 / RATE):
            frames += 1
            if frames % 23 == 0:  # and not in step with anything
                white = not white
                self.flips.append(1e3 * time.time())
            message = self._images[white]
            message.header.stamp = shell.ns_to_stamp(time.time_ns())
            self._publisher.publish(message)


def measure_latency(folder: Path, flips: int, browser: Browser) -> list[float]:
    """Return the ms from a message's publication to the screen, for so many changes."""
    graph = node_processes(panel=True, panel_port=0, root=str(folder))
    nodes = [node for node in graph if node.executable == "operator_panel"]
    with NodeProcesses(nodes, folder / "log") as processes:
        client = GraphClient("benchmark", processes.check)
        camera = Flipping(client)
        try:
            with tab(browser, page_url(processes)) as page:
                page.locator("#images figure.fresh").first.wait_for()
                page.evaluate(WATCH)
                begun = len(camera.flips)
                while len(camera.flips) < begun + flips:
                    time.sleep(0.1)
                seen = page.evaluate("window.flips")[1:]
        finally:
            camera.close()
            client.close()
    later = [[at - sent for at in seen if at >= sent] for sent in camera.flips[begun:]]
    return [min(each) for each in later if each]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--flips", type=int, default=20)
    options = parser.parse_args()
    os.environ["ROS_DOMAIN_ID"] = str(os.getpid() % 100 + 1)
    os.environ |= request_to_keep_to_machine()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= environment()
    rclpy.init()
    print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}")
    found: dict[str, list[Result]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        checkpoint = str(quick_checkpoint(Path(temporary)))
        for number in range(options.rounds):
            for way, pages in WAYS.items():
                folder = Path(temporary) / f"{number}-{pages}"
                found[way].append(measure_cost(folder, pages, options.chunks, checkpoint, browser))
                print(f"{way}: { {k: round(v, 2) for k, v in found[way][-1].items()} }", flush=True)
        late = measure_latency(Path(temporary) / "latency", options.flips, browser)
    rclpy.shutdown()
    heads = ("p50 ms", "max ms", "lost", "panel", "browser", "Hz/camera", "stop ms")
    print(f"\n{'':14}" + "".join(f"{head:>11}" for head in heads))
    plain = statistics.median(r["p50"] for r in found["no panel"])
    for way, results in found.items():
        median = {k: statistics.median(r[k] for r in results) for k in results[0]}
        print(
            f"{way:14}{median['p50']:11.1f}{median['max']:11.1f}{median['lost']:11.0f}"
            f"{median['panel']:11.1%}{median['browser']:11.1%}{median['shown']:11.1f}"
            f"{median['stop']:11.0f}   latency of a decision / without a panel: "
            f"{median['p50'] / plain:.2f}"
        )
    print(
        f"image published to image on screen: median {statistics.median(late):.0f} ms, "
        f"at most {max(late):.0f} ms, {len(late)} changes"
    )


if __name__ == "__main__":
    main()
