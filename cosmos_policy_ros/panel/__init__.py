"""The operator's page without ROS: who may open it, what it shows, and how it travels."""
