"""Code of one's own that kd.yaml names."""
