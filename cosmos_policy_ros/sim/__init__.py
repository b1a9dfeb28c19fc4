"""The simulated rig (MuJoCo), its tasks, its scripted demonstrator, its faults."""
