"""Tasks with rubrics, episodes, and the bags that hold them; no ROS and no torch in here."""
