"""Every option of the nodes, declared once. Imports no ROS.

Made from this table: the parameters that the nodes declare (``ros2 param describe``), the arguments
of the launch file, the help of ``cosmos run`` and the reference page.

Words that mean the same everywhere: ``default``, something else decides (the rig, the task, the
checkpoint); ``none``, without the thing; ``auto``, found at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cosmos_policy_ros.core.config import did_you_mean
from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.units import SEEDS

Value = bool | int | float | str
DEFAULT, NONE = "default", "none"


@dataclass(frozen=True)
class Option:
    """A node's parameter, or a choice about the graph.

    Attributes:
        name: as parameter and as launch argument.
        default: its type alone where no number can say that something else decides.
        description: what it does, with its unit.
        low, high: bounds of a number.
        choices: the words of a text that is one of some.
        argument: whether the launch file takes it, too.
    """

    name: str
    default: Value | type
    description: str
    low: float | None = None
    high: float | None = None
    argument: bool = False
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> type:
        """bool, int, float or str."""
        return self.default if isinstance(self.default, type) else type(self.default)

    @property
    def text(self) -> str:
        """The default as it is written in a shell."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return DEFAULT if isinstance(self.default, type) else str(self.default)

    def parse(self, text: str) -> Value:
        """Return what a launch argument says.

        Raises:
            ConfigError: it is no value of this option.
        """
        if self.kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        try:
            value: Value = {int: int, float: float, str: str}[self.kind](text)
        except (KeyError, ValueError):
            raise ConfigError(f"{self.name}:={text} must be {words[self.kind]}") from None
        return value

    def check(self, value: Value) -> None:
        """Refuse a value of another type, out of range, or that is none of the choices.

        Raises:
            ConfigError: names the option, the value, and what is allowed.
        """
        if type(value) not in ((int, float) if self.kind is float else (self.kind,)):
            raise ConfigError(f"{self.name} {value!r} must be of type {self.kind.__name__}")
        if self.low is not None and self.high is not None:
            assert isinstance(value, int | float)
            if not self.low <= value <= self.high:
                raise ConfigError(f"{self.name} {value} must be from {self.low:g} to {self.high:g}")
        if self.choices and value not in self.choices:
            hint = did_you_mean(str(value), self.choices)
            raise ConfigError(f"{self.name} '{value}' is not one{hint}")


RIG = Option(
    "rig",
    "sim",
    "rig description: a name in config/rigs (interbotix_1, interbotix_2, ros1_names, sim) or a "
    "YAML file; a simulated rig is started too",
    argument=True,
)
TASK = Option("task", "transfer_cube", "task: a name in config/tasks or a YAML file", argument=True)
IMAGES = Option(
    "images",
    DEFAULT,
    "raw cameras' images as jpeg, or raw on eight times the disk: as they are recorded, and so as "
    "the policy sees them; default: as the rig file says, the shipped ones jpeg",
    argument=True,
    choices=("jpeg", "raw", DEFAULT),
)
STEPPED = Option(
    "stepped",
    False,
    "simulated rig: advance only on ~/step, and publish /clock",
    argument=True,
)
POLICY = (
    RIG,
    TASK,
    IMAGES,
    Option(
        "engine",
        DEFAULT,
        "what decides: cosmos, demonstrator (simulated rig only), or remote, a policy server; "
        "default: remote where one is named, else cosmos on a real rig and for a search, else the "
        "demonstrator",
        argument=True,
        choices=("cosmos", "demonstrator", "remote", DEFAULT),
    ),
    Option(
        "remote",
        NONE,
        "engine remote: the policy server's URL, openpi://127.0.0.1:8000 or act://127.0.0.1:8777; "
        "the chunks executed are then as long and as fast as its config says",
        argument=True,
    ),
    Option(
        "remote_config",
        DEFAULT,
        "engine remote: how the server is spoken to: a name in config/remotes (openpi_aloha, "
        "openvla_oft_aloha, cosmos_aloha) or a YAML file; default: openpi_aloha for openpi://, "
        "openvla_oft_aloha for act://",
        argument=True,
    ),
    Option(
        "checkpoint",
        DEFAULT,
        "engine cosmos: checkpoint folder; default: the tiny one for a simulated rig, the released "
        "one for a real rig",
        argument=True,
    ),
    Option(
        "devices",
        "auto",
        "engine cosmos: torch devices like cuda:0,cuda:1 or cpu,cpu. A search runs on all of them, "
        "auto being every GPU; without one the first is used, auto being a GPU where there is one",
        argument=True,
    ),
    Option(
        "planning",
        NONE,
        "engine cosmos: how to search for the best of several chunks: a name in config/planning "
        "(best_of_8, best_of_8_one_gpu, best_of_8_quick, best_of_8_light, best_of_8_adaptive) or a "
        "YAML file; none: no search",
        argument=True,
    ),
    Option(
        "world_model",
        DEFAULT,
        "checkpoint folder that predicts futures and values in a search; default: the policy's own",
        argument=True,
    ),
    Option(
        "deadline",
        float,
        "wall s that a search may take, the arms holding; default: the task's",
        0.0,
        3600.0,
        argument=True,
    ),
    Option(
        "ray",
        NONE,
        "search on a Ray cluster: its address, auto, or local to start one; none: processes here",
        argument=True,
    ),
    Option(
        "compiled",
        False,
        "engine cosmos: compile the transformer; a minute at the first start, kept on disk",
        argument=True,
    ),
    Option(
        "fp8_weights",
        False,
        "engine cosmos: keep the transformer's weights in 8 bits; 0.6 of the memory, less exact",
        argument=True,
    ),
    Option(
        "numerics",
        DEFAULT,
        "engine cosmos: where NVIDIA's code and the paper differ, follow released or paper; "
        "default: as the checkpoint's config says",
        argument=True,
        choices=("released", "paper", DEFAULT),
    ),
    Option(
        "denoising_steps",
        int,
        "engine cosmos: denoising steps; default: the checkpoint's",
        1,
        1000,
        argument=True,
    ),
    Option("threads", 1, "torch threads on a CPU; more than one delays the node", 1, 256),
    Option(
        "niceness",
        10,
        "of inference processes: the node, and what moves the arms beside it, have the processor "
        "first; 0: all alike, where none of them keeps real time",
        0,
        19,
    ),
    Option(
        "futures",
        True,
        "engine cosmos: show what is imagined on ~/future/<camera>; decoding it takes an inference "
        "process a while, during which the arms move",
    ),
    Option(
        "seed",
        195,
        "base noise seed of the policy when the goal gives none",
        0,
        SEEDS - 1,
        argument=True,
    ),
    Option("observation_timeout", 10.0, "wall s to wait for a usable observation", 0.1, 600.0),
    Option("brake_seconds", 0.4, "s to bring a moving arm to rest on a stop", 0.04, 2.0),
    Option("start_timeout", 600.0, "wall s for the model to load", 1.0, 7200.0),
    Option(
        "query_timeout",
        60.0,
        "wall s for one task of a model, then it hangs; a remote's deadlines are in its config",
        0.1,
        3600.0,
    ),
    Option(
        "dry_run",
        False,
        "send trajectories to ~/preview/<output> and nothing to the arms; nothing is recorded",
        argument=True,
    ),
    Option(
        "execution",
        "synchronous",
        "synchronous asks for the next chunk when the arms rest, as in the paper; asynchronous "
        "while they move, whenever the answer can come in time; auto: asynchronous if that leaves "
        "no pause by the latencies measured, else synchronous",
        argument=True,
        choices=("synchronous", "asynchronous", "auto"),
    ),
    Option(
        "transition",
        "condition",
        "between chunks asked for in motion: condition has the policy begin with what the arms are "
        "committed to; blend only goes over from the old path to the new one",
        argument=True,
        choices=("condition", "blend"),
    ),
    Option("blend_seconds", 0.2, "s of going over from the old path to the new one", 0.0, 1.0),
    Option("start_speed", 0.5, "rad/s of the fastest joint on ~/go_to_start", 0.05, 1.0),
    Option("self_check", True, "arm only when all of ~/self_check passes"),
    Option(
        "watchdog",
        "arm_interface_node",
        "node that holds the arms should this one fall silent; none where no time passes",
    ),
    Option("restarts", 3, "times a dead inference process is started again", 0, 100),
)
ROOT = Option("root", "rollouts", "folder of the episodes, one bag each", argument=True)
RECORD = Option("record", True, "start the recorder", argument=True)
RECORDER = (
    RIG,
    ROOT,
    IMAGES,
    Option(
        "compression",
        NONE,
        "of the bags' chunks: none or zstd",
        argument=True,
        choices=(NONE, "zstd"),
    ),
    Option(
        "compact_after_score",
        False,
        "make video of a scored episode's images while nothing is recorded, a core's work for as "
        "long as it lasted: a tenth of the disk, but no longer what was decided on, bit for bit",
        argument=True,
    ),
)
ARM_INTERFACE = (
    RIG,
    Option("policy_state", "policy_node/state", "topic on which the policy node is alive"),
)
SIM_RIG = (
    RIG,
    TASK,
    Option("scene_seed", 0, "simulated rig: places the objects", 0, 2**31 - 1, argument=True),
    STEPPED,
    Option("width", 320, "simulated rig: image columns [px]", 16, 1920, argument=True),
    Option("height", 240, "simulated rig: image rows [px]", 16, 1080, argument=True),
    Option("render_quality", "fast", "fast, or full with shadows and anti-aliasing (a GPU)"),
    Option("noise", 1.0, "sensor noise [grey levels]; 0 looks like a frozen camera", 0.0, 50.0),
)
PANEL = (
    RIG,
    TASK,
    ROOT,
    RECORD,
    Option(
        "panel_address",
        "127.0.0.1",
        "operator's page: IP address that it is served on; beyond this machine only with a "
        "password or TLS",
        argument=True,
    ),
    Option(
        "panel_port",
        8780,
        "operator's page: TCP port; 0 for a free one",
        0,
        65535,
        argument=True,
    ),
    Option(
        "panel_password_file",
        NONE,
        "operator's page: file with a password that opens it, beside the token that is printed",
        argument=True,
    ),
    Option(
        "panel_certificate", NONE, "operator's page: PEM file of its TLS certificate", argument=True
    ),
    Option("panel_key", NONE, "operator's page: PEM file of the certificate's key", argument=True),
    Option(
        "protocol",
        NONE,
        "operator's page: trials to be made, blind: a name in config/evaluations (rehearsal) or a "
        "YAML file",
        argument=True,
    ),
    Option(
        "protocol_output",
        DEFAULT,
        "operator's page: folder of the pictures of the protocol's states and of its tables; "
        "default: evaluations/<the protocol's name> beside root",
        argument=True,
    ),
)
AUTOSTART = Option(
    "autostart", True, "configure and activate at start, without a lifecycle manager"
)
START_PANEL = Option(
    "panel", False, "start the operator's page, whose address it prints", argument=True
)
NODES: Mapping[str, tuple[Option, ...]] = {
    "policy_node": POLICY,
    "recorder_node": RECORDER,
    "arm_interface_node": ARM_INTERFACE,
    "sim_rig_node": SIM_RIG,
    "operator_panel": PANEL,
}
# The launch file's, in the order in which it shows them.
ARGUMENTS: Mapping[str, Option] = {
    option.name: option
    for option in (*POLICY, *RECORDER, RECORD, *SIM_RIG, START_PANEL, *PANEL)
    if option.argument
}


def check_arguments(given: Mapping[str, Value]) -> None:
    """Refuse what is no argument of the graph, or a value that it cannot have.

    Raises:
        ConfigError: names the argument, and the nearest one that there is.
    """
    for name, value in given.items():
        if name not in ARGUMENTS:
            raise ConfigError(f"there is no option '{name}'{did_you_mean(name, [*ARGUMENTS])}")
        ARGUMENTS[name].check(value)
