"""MCAP files and rosbag2 folders: writer, index, repair, check, messages. No ROS, no torch."""
