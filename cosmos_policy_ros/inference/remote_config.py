"""Where a foreign policy is, and how it is spoken to: ``config/remotes/*.yaml`` as dataclasses."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from cosmos_policy_ros.core.config import load_config, named_file
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.core.untrusted import shown
from cosmos_policy_ros.rig.spec import MAX_SIDE, RigSpec

Wire: TypeAlias = Literal["openpi", "act"]
Part: TypeAlias = Literal["left_arm", "left_gripper", "right_arm", "right_gripper"]
HandPart: TypeAlias = Literal["gripper", "position", "quaternion", "axis_angle"]
Camera: TypeAlias = Literal["primary", "left_wrist", "right_wrist", "wrist", "secondary"]
Constant: TypeAlias = bool | int | float | str
LAYOUT: tuple[Part, ...] = ("left_arm", "left_gripper", "right_arm", "right_gripper")
MAX_ROWS = 1000
LONGEST = 3600.0  # s, of a deadline
# By the scheme of an address: port, path, and the file that is taken where none is named.
DEFAULTS: Mapping[Wire, tuple[int, str, str]] = {
    "openpi": (8000, "/", "openpi_aloha"),
    "act": (8777, "/act", "openvla_oft_aloha"),
}


@dataclass(frozen=True)
class RemoteImage:
    """One camera's image in a request.

    Attributes:
        key: where it stands; ``a/b`` for a mapping within a mapping.
        camera: role of the camera.
        size: rows and columns [px].
        stored: rows and columns [px] that it is squeezed to before, as its policy's training images
            were stored; empty for not.
        fit: pad keeps the aspect ratio, with black at the sides; stretch does not.
        order: hwc, rows, columns, colours; or chw, colours first. RGB.
        filter: Pillow's, of every resizing.
        turn: no; flip, rows in the other order; or half, by half a turn: a benchmark's cameras
            render upside down.
    """

    key: str
    camera: Camera
    size: tuple[int, ...]
    stored: tuple[int, ...] = ()
    fit: Literal["pad", "stretch"] = "stretch"
    order: Literal["hwc", "chw"] = "hwc"
    filter: Literal["bilinear", "bicubic"] = "bicubic"
    turn: Literal["no", "flip", "half"] = "no"

    def __post_init__(self) -> None:
        for name, size in (("size", self.size), ("stored", self.stored or (1, 1))):
            if not (len(size) == 2 and all(0 < n <= MAX_SIDE for n in size)):
                raise ValueError(
                    f"{name}: {list(size)} must be rows and columns of 1 to {MAX_SIDE} px"
                )


@dataclass(frozen=True)
class RemoteState:
    """The measured state in a request: of two arms 14 numbers, arm joints [rad].

    Attributes:
        key: where it stands.
        layout: order of its parts.
        closed, open: what a gripper's number is there.
        hand: in place of ``layout`` for a benchmark's one arm: its gripper (2), and its hand's
            position (3) [m] and quaternion (4) or axis and angle (3) [rad].
    """

    key: str
    layout: tuple[Part, ...] = LAYOUT
    closed: float = 0.0
    open: float = 1.0
    hand: tuple[HandPart, ...] = ()

    def __post_init__(self) -> None:
        _check_layout(self.layout, self.closed, self.open)


@dataclass(frozen=True)
class RemoteActions:
    """The chunk in a reply: of two arms rows of 14 numbers, arm joints [rad].

    Attributes:
        rows: that a reply must have.
        executed: of them, from the first on.
        dt: seconds between two rows; the first is due one after the observation.
        key: where they stand; empty where the reply is the rows alone.
        kind: absolute targets; relative, each to the state that was sent; or delta, each to the
            row before it, the first to the state that was sent.
        layout: order of a row's parts.
        closed, open: what a gripper's number is there.
        hand: how many numbers a row for a benchmark's one arm has, which are executed as they are;
            0 for two arms.
        value: where a value of 0 to 1 stands that the server predicts for the chunk; empty for
            none.
    """

    rows: int
    executed: int
    dt: float
    key: str = ""
    kind: Literal["absolute", "relative", "delta"] = "absolute"
    layout: tuple[Part, ...] = LAYOUT
    closed: float = 0.0
    open: float = 1.0
    hand: int = 0
    value: str = ""

    def __post_init__(self) -> None:
        _check_layout(self.layout, self.closed, self.open)
        if not 1 <= self.executed <= self.rows <= MAX_ROWS:
            raise ValueError(
                f"executed: {self.executed} of rows: {self.rows} must be 1 to all of them, and "
                f"rows {MAX_ROWS} at most"
            )
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise ValueError(f"dt: {self.dt} s must be finite and above 0")


@dataclass(frozen=True)
class RemoteDeadlines:
    """How long a server may take [s]; each holds for the whole of what it is about.

    Attributes:
        connect: until there is a connection, and on openpi's wire its metadata.
        first_answer: to the first query of a run; a server that has just started may compile.
        answer: to each further query.
    """

    connect: float = 5.0
    first_answer: float = 300.0
    answer: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value <= LONGEST:
                raise ValueError(f"{name}: {value} s must be above 0 and {LONGEST:g} at most")


@dataclass(frozen=True)
class RemoteConfig:
    """A file of ``config/remotes``: how one kind of policy server is spoken to.

    Attributes:
        description: one line for people.
        wire: openpi, msgpack over WebSocket; or act, JSON over HTTP.
        images: in the order in which they are sent, which some servers go by.
        state: the measured state.
        actions: the chunk that comes back.
        prompt: where the prompt stands in a request; empty to send none.
        prompts: by this package's prompts those that the policy knows; others are sent unchanged.
        seed: where the query's seed stands, for a server that draws its noise by it; empty to send
            none.
        nested: whether a key ``a/b`` of a request stands for a mapping within a mapping; where not
            it is sent as it is, slash and all.
        constants: further fields of every request, by where they stand.
        deadlines: how long the server may take.
    """

    description: str
    wire: Wire
    images: tuple[RemoteImage, ...]
    state: RemoteState
    actions: RemoteActions
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    seed: str = ""
    nested: bool = True
    constants: Mapping[str, Constant] = field(default_factory=dict)
    deadlines: RemoteDeadlines = field(default_factory=RemoteDeadlines)

    def __post_init__(self) -> None:
        """Refuse keys that stand in each other's way, and arms of two kinds."""
        if bool(self.state.hand) != bool(self.actions.hand) or self.actions.hand < 0:
            raise ValueError(
                f"state.hand: {list(self.state.hand)} and actions.hand: {self.actions.hand} go "
                "together: both for a benchmark's one arm, neither for two arms"
            )
        if self.actions.hand and self.actions.kind != "absolute":
            raise ValueError("actions.kind: a benchmark's rows are executed as they are: absolute")
        keys = [*(image.key for image in self.images), self.state.key, *self.constants]
        keys += [key for key in (self.prompt, self.seed) if key]
        for key in keys:
            if not all(key.split("/")):
                raise ValueError(f"key '{shown(key)}' has an empty part")
            within = [other for other in keys if other == key or other.startswith(f"{key}/")]
            if len(within) > 1:
                raise ValueError(f"key '{shown(key)}' is taken twice in a request; rename one")


@dataclass(frozen=True)
class Remote:
    """A server, and how it is spoken to.

    Attributes:
        url: as given.
        host: name or address.
        port: TCP.
        path: of the URL on the wire.
        config: how it is spoken to.
        name: of the config.
    """

    url: str
    host: str
    port: int
    path: str
    config: RemoteConfig
    name: str

    @property
    def loopback(self) -> bool:
        """Whether nothing leaves this machine, unless it is a tunnel's end."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def longest(self) -> float:
        """Seconds within which any query is answered, or has failed."""
        deadlines = self.config.deadlines
        return deadlines.connect + max(deadlines.first_answer, deadlines.answer)

    def executing(self, rig: RigSpec) -> RigSpec:
        """Return the rig as it executes this policy's chunks; raises ConfigError."""
        actions = self.config.actions
        if actions.hand:
            raise ConfigError(
                f"the remote config '{self.name}' is for the one arm of a benchmark, and rig "
                f"'{rig.name}' has two: take one for ALOHA, or evaluate on the benchmark"
            )
        return rig.executing(actions.executed, actions.dt)


def load_remote(url: str, name: str | None = None) -> Remote:
    """Find out how to speak to a server.

    Args:
        url: such as ``openpi://127.0.0.1:8000`` or ``act://127.0.0.1:8777``.
        name: a name in ``config/remotes`` or a YAML file; None for the one of the URL's scheme.

    Raises:
        ConfigError: the URL is none of these, or the file is missing, wrong or for the other wire.
    """
    example = "give one like openpi://127.0.0.1:8000 or act://127.0.0.1:8777"
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"remote '{shown(url)}' is no URL ({error}); {example}") from None
    wires = [wire for wire in DEFAULTS if wire == scheme]
    if not wires or not host or not url.isprintable() or " " in url:
        raise ConfigError(f"remote '{shown(url)}' is no URL of a policy server; {example}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"remote '{shown(url)}' has a user, a query or a fragment, which no server here takes; "
            f"{example}"
        )
    usual_port, usual_path, usual_name = DEFAULTS[wires[0]]
    file = named_file(name or usual_name, config_folder("remotes"))
    config = load_config(RemoteConfig, file)
    if config.wire != scheme:
        raise ConfigError(
            f"remote '{shown(url)}' speaks {scheme}, and {file} is for wire {config.wire}; give "
            f"remote_config a file of that wire, or the URL {config.wire}://"
        )
    path = parts.path if parts.path not in ("", "/") else usual_path
    return Remote(url, host, usual_port if port is None else port, path, config, file.stem)


def exposure(remote: Remote) -> str:
    """Return what there is to warn of about a server's address; empty for loopback."""
    if remote.loopback:
        return ""
    return (
        f"{remote.host} is another machine, and the wire is neither encrypted nor authenticated: "
        "who can reach it sees the cameras and can move the arms; use an ssh tunnel to 127.0.0.1"
    )


def _check_layout(layout: tuple[Part, ...], closed: float, opened: float) -> None:
    if sorted(layout) != sorted(LAYOUT):
        raise ValueError(f"layout: {list(layout)} must have each of {', '.join(LAYOUT)} once")
    if closed == opened or not (math.isfinite(closed) and math.isfinite(opened)):
        raise ValueError(f"closed: {closed} and open: {opened} must be finite and differ")
