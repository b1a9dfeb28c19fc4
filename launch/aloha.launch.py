"""Cosmos Policy on an ALOHA: rig (simulated, if the rig file says so), policy, recorder.

    ros2 launch cosmos_policy_ros aloha.launch.py task:=ziploc checkpoint:=/path/to/checkpoint
    ros2 launch cosmos_policy_ros aloha.launch.py rig:=sim task:=transfer_cube

The nodes and their parameters come from ``cosmos_policy_ros.nodes.graph``, as in ``scripts/demo``.
"""

import os
from dataclasses import fields
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from cosmos_policy_ros.core.errors import CosmosPolicyError
from cosmos_policy_ros.core.paths import config_folder
from cosmos_policy_ros.nodes.graph import GraphOptions, environment, exposure, node_processes
from cosmos_policy_ros.rig.spec import load_rig

DESCRIPTIONS = {
    "rig": "rig description: a name in config/rigs (interbotix_1, interbotix_2, ros1_names, sim) "
    "or a YAML file; a sim rig is started too",
    "task": "task: a name in config/tasks or a YAML file",
    "engine": "what decides: cosmos, demonstrator (simulated rig only), or auto",
    "checkpoint": "checkpoint folder of engine cosmos; 'auto' for the rig's default",
    "devices": "torch devices of engine cosmos: auto, cpu, or a list like cuda:0,cuda:1; a search "
    "runs on all of them, auto being every GPU",
    "planning": "engine cosmos: direct, or a search for the best of several chunks: a name in "
    "config/planning (best_of_8, best_of_8_quick, best_of_8_one_gpu) or a YAML file",
    "world_model": "checkpoint folder that imagines and appraises in a search; 'policy' for the "
    "policy's own",
    "deadline": "wall seconds that a search may take, the arms holding; 0 as the task says",
    "ray": "search on a Ray cluster: its address, auto, or local to start one; 'none' for "
    "processes on this machine",
    "compiled": "engine cosmos: true compiles the transformer, which takes minutes at start",
    "numerics": "engine cosmos: where NVIDIA's code and the paper differ, follow released or "
    "paper; checkpoint: as its config says",
    "denoising_steps": "engine cosmos: denoising steps; 0 for the checkpoint's",
    "execution": "synchronous asks for the next chunk when the arms rest, as in the paper; "
    "asynchronous "
    "while they move; auto while they move if no pause is left then",
    "transition": "between chunks asked for in motion: condition has the policy begin with what "
    "the arms "
    "are committed to; blend only goes over from the old path to the new one",
    "seed": "base noise seed of the policy",
    "dry_run": "true sends trajectories to policy_node/preview/<output>, and nothing to the arms",
    "root": "folder of the episodes, one bag each",
    "record": "start the recorder: true or false",
    "images": "raw keeps the cameras' bytes; jpeg takes a tenth of the disk",
    "compression": "of the bags' chunks: none or zstd",
    "scene_seed": "simulated rig: places the objects",
    "stepped": "simulated rig: true advances only on ~/step and publishes /clock",
    "width": "simulated rig: image columns [px]; 0 for the parameter file's",
    "height": "simulated rig: image rows [px]; 0 for the parameter file's",
}
# The command line cannot pass an empty text.
EMPTY = {"checkpoint": "auto", "world_model": "policy", "ray": "none"}
DEFAULTS = {"rig": "interbotix_1", "task": "ziploc", **EMPTY}


def read_bool(name: str, text: str) -> bool:
    """Return what a launch argument says."""
    if text.lower() not in ("true", "false"):
        raise CosmosPolicyError(f"{name}:={text} must be true or false")
    return text.lower() == "true"


def read_options(context: LaunchContext) -> GraphOptions:
    """Turn the launch arguments, which are all text, into the graph's options."""
    values = {}
    for field in fields(GraphOptions):
        text = LaunchConfiguration(field.name).perform(context)
        if isinstance(field.default, bool):
            values[field.name] = read_bool(field.name, text)
        elif isinstance(field.default, (int, float)):
            kind, words = type(field.default), "a number"
            if kind is int:
                words = "a whole number"
            try:
                values[field.name] = kind(text)
            except ValueError:
                raise CosmosPolicyError(f"{field.name}:={text} must be {words}") from None
        else:
            values[field.name] = text
    for name, word in EMPTY.items():
        if values[name] == word:
            values[name] = ""
    return GraphOptions(**values)


def shut_down_unless_asked_to(event: ProcessExited, context: LaunchContext) -> list | None:
    """End the graph when a node ends by itself; on Ctrl-C it is ending already."""
    return None if context.is_shutdown else [Shutdown(reason=f"{event.process_name} ended")]


def start_drivers(context: LaunchContext) -> list:
    """Start the rig's own drivers, if that is asked for; they need the large-image profile too."""
    if not read_bool("bringup", LaunchConfiguration("bringup").perform(context)):
        return []
    rig = load_rig(LaunchConfiguration("rig").perform(context), config_folder("rigs"))
    if rig.bringup is None:
        raise CosmosPolicyError(
            f"rig '{rig.name}' has no bringup block: start its drivers yourself"
        )
    try:
        share = Path(get_package_share_directory(rig.bringup.package))
    except PackageNotFoundError:
        raise CosmosPolicyError(
            f"package '{rig.bringup.package}' is not installed; source the workspace that has it, "
            "or leave bringup:=true out and start the drivers yourself"
        ) from None
    source = PythonLaunchDescriptionSource(str(share / "launch" / rig.bringup.file))
    arguments = [tuple(each.split(":=", 1)) for each in rig.bringup.arguments]
    profile = [SetEnvironmentVariable(name, value) for name, value in environment().items()]
    return [*profile, IncludeLaunchDescription(source, launch_arguments=arguments)]


def start_nodes(context: LaunchContext) -> list:
    """Start the graph, saying who may talk to it; a node that ends by itself ends the rest."""
    namespace = LaunchConfiguration("namespace").perform(context)
    level = LaunchConfiguration("log_level").perform(context)
    nodes = [
        Node(
            package="cosmos_policy_ros",
            executable=node.executable,
            name=node.executable,
            namespace=namespace,
            # Typed, or launch would read a text like "5" or "true" as a number or a bool.
            parameters=[
                str(node.parameter_file),
                {k: ParameterValue(v, value_type=type(v)) for k, v in node.parameters.items()},
            ],
            arguments=["--ros-args", "--log-level", level, "--enclave", node.enclave],
            additional_env=environment(node.profile),
            output="screen",
            # Long enough for a bag to be finished.
            sigterm_timeout="15",
            on_exit=shut_down_unless_asked_to,
        )
        for node in node_processes(read_options(context))
    ]
    return [LogInfo(msg=exposure(os.environ | environment())), *nodes]


def generate_launch_description() -> LaunchDescription:
    """Return the launch description that ``ros2 launch`` looks for."""
    arguments = [
        DeclareLaunchArgument(
            field.name,
            default_value=str(DEFAULTS.get(field.name, field.default)).lower()
            if isinstance(field.default, bool)
            else str(DEFAULTS.get(field.name, field.default)),
            description=DESCRIPTIONS[field.name],
        )
        for field in fields(GraphOptions)
    ]
    arguments += [
        DeclareLaunchArgument(
            "bringup",
            default_value="false",
            description="true starts the rig's own drivers first, as its file says (interbotix_1 "
            "and interbotix_2: aloha_bringup.launch.py without leaders)",
        ),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of all nodes"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn"),
    ]
    starts = [OpaqueFunction(function=start_drivers), OpaqueFunction(function=start_nodes)]
    return LaunchDescription([*arguments, *starts])
