"""The brisk policy node with inference processes that are forked, and need not import torch each.

That a node spawns them is for the tests of the other graphs to see.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

    from helpers.forked import forked_workers

    from cosmos_policy_ros.nodes import policy_node

    policy_node.DIAGNOSIS_PERIOD = 0.1  # tests wait for what it tells
    with forked_workers():
        policy_node.main()
