"""The default run of the main job."""
