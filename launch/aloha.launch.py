"""Cosmos Policy on an ALOHA: rig (simulated, if the rig file says so), policy, recorder.

    ros2 launch cosmos_policy_ros aloha.launch.py task:=ziploc checkpoint:=/path/to/checkpoint
    ros2 launch cosmos_policy_ros aloha.launch.py rig:=sim task:=transfer_cube

The nodes come from ``cosmos_policy_ros.nodes.graph``, as in ``scripts/demo``; the arguments from
``cosmos_policy_ros.nodes.options``, as the nodes' parameters do.
"""

import os
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
from cosmos_policy_ros.nodes.graph import environment, exposure, node_processes
from cosmos_policy_ros.nodes.options import ARGUMENTS, Option, Value
from cosmos_policy_ros.rig.spec import load_rig

# A lab's rig, where the nodes' own defaults are the simulated one.
DEFAULTS = {"rig": "interbotix_1", "task": "ziploc"}


def read_arguments(context: LaunchContext) -> dict[str, Value]:
    """Return the launch arguments that differ from the nodes' defaults.

    What is left at its default is left to the node's parameter file.
    """
    texts = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    return {
        name: ARGUMENTS[name].parse(text)
        for name, text in texts.items()
        if text != ARGUMENTS[name].text
    }


def shut_down_unless_asked_to(event: ProcessExited, context: LaunchContext) -> list | None:
    """End the graph when a node ends by itself; on Ctrl-C it is ending already."""
    return None if context.is_shutdown else [Shutdown(reason=f"{event.process_name} ended")]


def start_drivers(context: LaunchContext) -> list:
    """Start the rig's own drivers, if that is asked for; they need the large-image profile too."""
    asked = LaunchConfiguration("bringup").perform(context)
    if not Option("bringup", False, "").parse(asked):
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
        for node in node_processes(**read_arguments(context))
    ]
    return [LogInfo(msg=exposure(os.environ | environment())), *nodes]


def generate_launch_description() -> LaunchDescription:
    """Return the launch description that ``ros2 launch`` looks for."""
    arguments = [
        DeclareLaunchArgument(
            name,
            default_value=DEFAULTS.get(name, option.text),
            description=option.description,
        )
        for name, option in ARGUMENTS.items()
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
