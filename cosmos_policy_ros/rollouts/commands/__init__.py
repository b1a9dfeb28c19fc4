"""What operators type: scripts/episodes, score, recover, import_hdf5 and the exports."""
