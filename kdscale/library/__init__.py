"""kdscale from Python: the same configs, run folders and networks, for scripts and notebooks (docs/python.md)."""
