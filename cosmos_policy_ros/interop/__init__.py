"""Other people's data: HDF5 files into bags, bags into HDF5 files and LeRobot data sets."""
