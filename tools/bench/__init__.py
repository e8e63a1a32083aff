"""The benchmark: Plug-and-Play's edit, the authors' way and ours, side by side in one process."""
