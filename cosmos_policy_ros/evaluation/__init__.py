"""Trials on the simulated rig without ROS: demonstrations, evaluations, and the loop of both."""
