# Source this to run the package's commands from a shell: `. scripts/env.sh`.
# Sets what ROS needs to find the interfaces that scripts/setup built, and the Fast DDS profile
# without which large images are lost and which keeps to this machine.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_venv=$_root/.venv
_libraries=$_venv/lib
if [ -z "${ROS_DISTRO:-}" ]; then
  # The wheels would set this themselves at every start, in random order and at 50 ms a time.
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  for _folder in "$_venv"/lib/python3.*/site-packages/ros_*.libs; do
    _libraries=$_libraries:$_folder
  done
fi
if [ -f "$_venv/.workspace" ]; then  # what colcon built; its own files use variables that are not set
  case $- in *u*) _strict=1 ;; *) _strict= ;; esac
  set +u
  . "$(cat "$_venv/.workspace")/local_setup.bash"
  [ -z "$_strict" ] || set -u
fi
# The source tree first: a new module then needs no build.
export PYTHONPATH=$_root${PYTHONPATH:+:$PYTHONPATH}
export PATH=$_venv/bin:$PATH
export AMENT_PREFIX_PATH=$_venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
export CMAKE_PREFIX_PATH=$_venv${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
export LD_LIBRARY_PATH=$_libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# Commands keep to this machine unless the shell says otherwise, as the launch file does.
eval "$("$_venv/bin/python" -c '
from shlex import quote
from cosmos_policy_ros.nodes.graph import environment
print(*(f"export {name}={quote(value)}" for name, value in environment().items()), sep="\n")')"
case $- in
  *i*) eval "$(register-python-argcomplete cosmos)" ;;
esac
unset _root _venv _libraries _folder _strict
