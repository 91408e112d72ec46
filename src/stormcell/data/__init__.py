"""Frames in → windows: xarray at the door, tensors after `windows`."""
