"""The policy node with the stub engine; tests start it in place of ``scripts/policy_node``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

    from helpers.stub_engine import load

    from cosmos_policy_ros.nodes import policy_node, shell

    policy_node.DIAGNOSIS_PERIOD = 0.1  # tests wait for what it tells
    shell.main(lambda: policy_node.make_node(load))
