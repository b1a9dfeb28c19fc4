"""The rig without ROS: its description, what it sees, what it may do, and one run of a task."""
