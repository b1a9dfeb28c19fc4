"""The recorder node, telling more often how far it is; it runs in the graphs of tests."""

if __name__ == "__main__":
    from cosmos_policy_ros.nodes import recorder_node

    recorder_node.WATCH_PERIOD = 0.1  # tests wait for what it tells
    recorder_node.main()
