"""Thin ROS shells: parameters in, messages out. The only room that imports rclpy."""
