"""The policy node with the stub engine; tests start it in place of ``scripts/policy_node``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

    from helpers.stub_engine import load

    from cosmos_policy_ros.nodes import shell
    from cosmos_policy_ros.nodes.policy_node import make_node

    shell.main(lambda: make_node(load))
