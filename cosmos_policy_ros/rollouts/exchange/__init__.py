"""Episodes in other formats: HDF5 files into bags, bags into HDF5 files and LeRobot data sets."""
