"""MCAP files, rosbag2 folders: writer, index, repair, check, messages, video. No ROS, no torch."""
