"""Finished networks as folders for people who do not have kdscale."""
