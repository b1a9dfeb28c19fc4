"""What was seen and done, read back: observations, windows, gate replay, contact sheets."""
