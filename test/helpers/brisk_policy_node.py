"""The policy node, telling more often how it is; tests start it in place of the shipped program."""

if __name__ == "__main__":
    from cosmos_policy_ros.nodes import policy_node

    policy_node.DIAGNOSIS_PERIOD = 0.1  # tests wait for what it tells
    policy_node.main()
