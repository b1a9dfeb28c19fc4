"""Starts a policy node, prints its process id once it has a worker, and waits to be killed."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

    from helpers.graph import STUBS, start, worker_of
    from helpers.waiting import wait_for

    from cosmos_policy_ros.nodes.graph import node_processes

    nodes = node_processes(record=False)
    policy = tuple(node for node in nodes if node.executable == "policy_node")
    with start(policy, Path(sys.argv[1]), STUBS) as processes:
        pid = processes.pid("policy_node")
        wait_for(lambda: worker_of(pid), "the node's worker")
        print(pid, flush=True)
        wait_for(lambda: False, "the end")
