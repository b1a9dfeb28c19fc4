"""What every room stands on: errors, configuration files, paths, whole files, tasks, units."""
